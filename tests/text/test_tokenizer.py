"""Text to ids and back."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from vitrine.errors import ConfigError, CorpusError, PromptError
from vitrine.text.tokenizer import (
    END_OF_TEXT,
    bulk_encoder,
    byte_tokenizer,
    char_tokenizer,
    decode,
    encode,
    end_of_text_id,
    kind,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
    unknown_characters,
    unknown_id,
)

SAMPLE = ["the cat sat on the mat, and the cat sat on the hat. " * 20, "naïve façade 🙂\r\n\ttabs" * 5]
BPE = train_bpe(iter(SAMPLE), 300)
AWKWARD = ["", " ", "\r\n", "\n\n\n", "a\u0000b", "\ufeff", "🙂" * 3, "e\u0301", "  two  spaces ", END_OF_TEXT, "<s>"]

any_text = st.text(st.characters(exclude_categories=["Cs"]))  # all of Unicode but surrogates


@given(any_text)
def test_any_text_comes_back_from_bytes_and_from_bpe(text):
    for tokenizer in (byte_tokenizer(), BPE):
        assert decode(tokenizer, encode(tokenizer, text)) == text


@pytest.mark.parametrize("text", AWKWARD)
@pytest.mark.parametrize("make", [byte_tokenizer, lambda: BPE])
def test_awkward_text_comes_back(make, text):
    assert decode(make(), encode(make(), text)) == text


@given(st.data())
def test_text_of_the_alphabet_comes_back_from_characters(data):
    alphabet = data.draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
    text = data.draw(st.text(st.sampled_from(alphabet)))
    tokenizer = char_tokenizer(alphabet)
    ids = encode(tokenizer, text)
    assert decode(tokenizer, ids) == text
    assert ids == [sorted(set(alphabet)).index(character) for character in text]


def test_the_id_of_a_byte_is_the_byte():
    text = "naïve 🙂\n"
    assert encode(byte_tokenizer(), text) == list(text.encode("utf-8"))


def test_bpe_merges_what_is_frequent():
    assert len(encode(BPE, "the cat sat on the mat")) < len("the cat sat on the mat") / 2


def test_bpe_is_the_same_each_time_and_keeps_within_its_size():
    assert train_bpe(iter(SAMPLE), 300).to_str() == BPE.to_str()
    assert BPE.get_vocab_size() <= 300
    assert train_bpe(iter(["ab"]), 300).get_vocab_size() == 258  # a small text has few pairs: the bytes, ab, the end


def test_bpe_beyond_what_a_model_can_have_is_refused_before_the_library_aborts():
    with pytest.raises(ConfigError, match=r"bpe:99999999999 is too large: a model has at most 16,777,216"):
        train_bpe(iter(SAMPLE), 99_999_999_999)


def test_bpe_below_the_bytes_is_refused_with_a_size_to_try():
    with pytest.raises(ConfigError, match=r"bpe:256 is too small.*257.*bpe:512"):
        train_bpe(iter(SAMPLE), 256)


@pytest.mark.parametrize(("make", "end"), [(byte_tokenizer, 256), (lambda: BPE, BPE.get_vocab_size() - 1)])
def test_the_end_of_text_is_the_last_id_and_its_name_in_a_text_is_text(make, end):
    tokenizer = make()
    assert end_of_text_id(tokenizer) == end
    ids = encode(tokenizer, f"a{END_OF_TEXT}b")
    assert end not in ids
    assert decode(tokenizer, ids) == f"a{END_OF_TEXT}b"
    (bulk, _) = bulk_encoder(tokenizer)([f"a{END_OF_TEXT}b"])
    assert bulk.tolist() == ids


def test_characters_have_no_end_of_text():
    assert end_of_text_id(char_tokenizer("abc" + END_OF_TEXT)) is None


def test_a_character_that_the_corpus_lacks_is_named():
    with pytest.raises(PromptError, match=r"'z' \(U\+007A\), 'é' \(U\+00E9\).*byte or bpe"):
        encode(char_tokenizer("abc"), "cabézb")
    with pytest.raises(CorpusError, match=r"'z' \(U\+007A\)"):
        bulk_encoder(char_tokenizer("abc"))(["abc", "z"])


def test_half_a_character_is_refused():
    with pytest.raises(PromptError, match=r"U\+D83D.*position 1"):
        encode(byte_tokenizer(), "a\ud83d")


@given(st.lists(st.lists(st.sampled_from(["the", "cat", "sat"])).map(" ".join), max_size=6))
def test_in_bulk_the_ids_are_the_same(texts):
    for tokenizer in (char_tokenizer("acehst "), byte_tokenizer(), BPE, _of_words()):
        ids, ends = bulk_encoder(tokenizer)(texts)
        parts = np.split(ids, ends[:-1]) if texts else []
        assert [part.tolist() for part in parts] == [encode(tokenizer, text) for text in texts]


def test_a_tokenizer_comes_back_from_its_file(tmp_path):
    for made in (char_tokenizer("abc"), byte_tokenizer(), BPE):
        save_tokenizer(made, tmp_path / "tokenizer.json")
        read = load_tokenizer(tmp_path / "tokenizer.json")
        assert read.to_str() == made.to_str()
        assert kind(read) == kind(made)


def test_the_kinds_are_told_apart():
    assert [kind(made) for made in (char_tokenizer("abc"), byte_tokenizer(), BPE)] == ["char", "byte", "bpe"]


def test_a_tokenizer_that_is_almost_one_of_ours_is_not_taken_for_it():
    folded = char_tokenizer("abc")
    folded.normalizer = normalizers.Lowercase()
    glued = char_tokenizer("abc")
    glued.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+"), behavior="isolated")
    spaced = byte_tokenizer()
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    named = char_tokenizer("abc")
    named.add_tokens([AddedToken("abc")])
    assert [kind(made) for made in (folded, glued, spaced, named)] == ["other", "other", "bpe", "other"]


def test_a_given_tokenizer_neither_truncates_nor_pads(tmp_path):
    made = byte_tokenizer()
    made.enable_truncation(2)
    made.enable_padding(length=8)
    made.save(str(tmp_path / "tokenizer.json"))
    assert encode(load_tokenizer(tmp_path / "tokenizer.json"), "abcd") == [97, 98, 99, 100]


def test_a_given_tokenizer_without_a_token_for_the_unknown_names_what_it_lacks():
    words = _of_words()
    assert unknown_characters(words, "the zebra sat") == ["zebra"]
    with pytest.raises(PromptError, match="'zebra'"):
        encode(words, "the zebra sat")


def _lacking(*characters: str) -> Tokenizer:
    """Byte-level BPE whose vocabulary lacks some letters for bytes."""
    state = json.loads(BPE.to_str())
    kept = [token for token in BPE.get_vocab(with_added_tokens=False) if not set(token) & set(characters)]
    state["model"]["vocab"] = {token: number for number, token in enumerate(kept)}
    state["model"]["merges"], state["added_tokens"] = [], []
    return Tokenizer.from_str(json.dumps(state))


def test_bytes_that_a_vocabulary_lacks_are_refused_where_the_library_drops_them():
    lacking = _lacking("Ġ", "Ċ", "Ã")  # space, end of line, 0xc3
    assert decode(lacking, lacking.encode("the cat\nnaïve").ids) == "thecatna\N{REPLACEMENT CHARACTER}ve"
    with pytest.raises(CorpusError) as error:
        bulk_encoder(lacking)(["the", "the cat\nnaïve"])
    assert (
        "The text holds '\\n' (U+000A), ' ' (U+0020), 'ï' (U+00EF), which the tokenizer has no token for: it lacks "
        in str(error.value)
    )
    assert "the bytes 0x0a, 0x20, 0xc3. " in str(error.value)
    with pytest.raises(PromptError, match="never seen ' '"):
        encode(lacking, "the cat")
    assert bulk_encoder(lacking)(["thecat"])[0].tolist() == lacking.encode("thecat").ids


def test_characters_that_bpe_lacks_are_refused_unless_bytes_or_a_token_for_the_unknown_spell_them():
    letters = {letter: number for number, letter in enumerate("abc")}
    with pytest.raises(
        CorpusError, match=r"holds 'd' \(U\+0064\), 'é' \(U\+00E9\), which the tokenizer has no token for. "
    ):
        bulk_encoder(Tokenizer(models.BPE(letters, [])))(["ab", "bdé"])
    in_bytes = letters | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    assert len(bulk_encoder(Tokenizer(models.BPE(in_bytes, [], byte_fallback=True)))(["bdé"])[0]) == 4
    with_unknown = Tokenizer(models.BPE(letters | {"<unk>": 3}, [], unk_token="<unk>"))
    assert bulk_encoder(with_unknown)(["abd"])[0].tolist() == [0, 1, 3]
    assert unknown_id(with_unknown) == 3
    added = Tokenizer(models.BPE(letters, []))
    added.add_tokens(["d"])
    assert bulk_encoder(added)(["abd"])[0].tolist() == [0, 1, 3]


def test_what_the_library_cannot_encode_is_said_in_a_sentence():
    pieces = Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)], None))
    with pytest.raises(CorpusError, match="The tokenizer cannot encode the text: "):
        bulk_encoder(pieces)(["abc"])
    assert unknown_id(pieces) is None
    assert unknown_id(Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0))) == 0


def test_a_missing_file_and_one_that_is_no_tokenizer_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no tokenizer at .*bpe:N"):
        load_tokenizer(tmp_path / "none.json")
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(ConfigError, match=r"is not a tokenizer\.json"):
        load_tokenizer(tmp_path / "other.json")


def test_a_tokenizer_with_gaps_in_its_ids_is_refused(tmp_path):
    state = json.loads(char_tokenizer("abc").to_str())
    state["model"]["vocab"]["c"] = 7
    (tmp_path / "gaps.json").write_text(json.dumps(state))
    with pytest.raises(ConfigError, match="gaps: 3 tokens, and the largest id is 7"):
        load_tokenizer(tmp_path / "gaps.json")


def _of_words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"the": 0, "cat": 1, "sat": 2}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer
