"""Text to token ids and back. Every tokenizer is a Hugging Face `tokenizers.Tokenizer`.

Three kinds are made here: `char` (an id per character of the corpus), `byte` (an id per byte of UTF-8) and
`bpe` (byte pairs merged by frequency, as GPT-2 has it). Any other comes as a tokenizer.json.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from vitrine.errors import ConfigError, CorpusError, PromptError, VitrineError

END_OF_TEXT = "<|endoftext|>"
USUAL_ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>")
USUAL_STARTS = ("<s>", "<|begin_of_text|>", "<bos>")
TOKENIZER_CONFIG = "tokenizer_config.json"  # beside a tokenizer.json: which special token has which name
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

Ids = NDArray[np.uint32]
BulkEncoder = Callable[[Sequence[str]], tuple[Ids, NDArray[np.int64]]]

_ANY_CHARACTER = r"[\s\S]"
LARGEST_BPE = 2**24  # as model.vocab_size; the tokenizers library aborts where it cannot hold so many


def char_tokenizer(alphabet: str) -> Tokenizer:
    """A token per character, in code-point order. It has no end-of-text token and knows no other character."""
    vocabulary = {character: index for index, character in enumerate(sorted(set(alphabet)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_ANY_CHARACTER), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """A token per byte of UTF-8: the id is the byte, and 256 is the end of text."""
    tokenizer = Tokenizer(models.BPE(_byte_vocabulary(), []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer


def train_bpe(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with GPT-2's pre-tokenization, learned from texts; the end of text is the last id.

    A small corpus may have fewer pairs to merge than asked for; the vocabulary is smaller then.
    """
    if vocab_size < 257:
        raise ConfigError(
            f"data.tokenizer = bpe:{vocab_size} is too small: the 256 bytes and the end of text need "
            "257. Try bpe:512, or data.tokenizer = byte."
        )
    if vocab_size > LARGEST_BPE:
        raise ConfigError(
            f"data.tokenizer = bpe:{vocab_size} is too large: a model has at most {LARGEST_BPE:,} tokens. Try bpe:50257."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json, without its truncation, padding and dropout: these are for batches, not for a corpus."""
    if not path.is_file():
        raise ConfigError(
            f"There is no tokenizer at {path}. Give data.tokenizer auto, char, byte, bpe:N, or the path "
            "of a tokenizer.json, or of a folder that holds one."
        )
    with _library_errors(ConfigError, f"{path} is not a tokenizer.json that the tokenizers library can read"):
        tokenizer = Tokenizer.from_file(str(path))
    largest, size = max(tokenizer.get_vocab().values(), default=-1), tokenizer.get_vocab_size()
    if largest + 1 != size:
        raise ConfigError(
            f"The ids in {path} have gaps: {size} tokens, and the largest id is {largest}. Give a tokenizer whose ids "
            f"are 0 to {size - 1}."
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if isinstance(tokenizer.model, models.BPE):
        tokenizer.model.dropout = None
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer.json."""
    path.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")


def kind(tokenizer: Tokenizer) -> str:
    """char, byte, bpe or other. «char» and «byte» are those that are made here, or are equal to them."""
    model, before = tokenizer.model, tokenizer.pre_tokenizer
    added = tokenizer.get_added_tokens_decoder().values()
    as_it_stands = tokenizer.normalizer is None and all(token.special for token in added)
    if isinstance(model, models.WordLevel) and isinstance(before, pre_tokenizers.Split) and as_it_stands:
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        return "char" if _parts_characters(before) and all(len(token) == 1 for token in vocabulary) else "other"
    if isinstance(model, models.BPE) and isinstance(before, pre_tokenizers.ByteLevel):
        whole_text = not before.use_regex and not before.add_prefix_space and as_it_stands
        return "byte" if whole_text and tokenizer.get_vocab(with_added_tokens=False) == _byte_vocabulary() else "bpe"
    return "other"


def end_of_text_id(tokenizer: Tokenizer) -> int | None:
    """The id of the token that ends a document, if the tokenizer has one."""
    for name in USUAL_ENDS:
        found: int | None = tokenizer.token_to_id(name)
        if found is not None:
            return found
    return None


def start_id(tokenizer: Tokenizer) -> int:
    """The id that an empty prompt stands for: it starts as a document does, after an end of text, or on a new line."""
    found = end_of_text_id(tokenizer)
    if found is None:
        found = tokenizer.token_to_id("\n")
    return 0 if found is None else found


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """The tokenizer_config.json of a folder; empty if there is none. Raises ConfigError if it is malformed."""
    path = folder / TOKENIZER_CONFIG
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Correct or remove it.") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path} must be a JSON object: got {type(config).__name__}. Correct or remove it.")
    return config


def named_tokens(config: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens that have a name, such as bos_token and eos_token: chat templates use them.

    Args:
        config: a tokenizer_config.json. For a name that it lacks, the usual token is taken if the tokenizer has it; a
            document begins with its end-of-text token if there is none of its own.
    """
    end = end_of_text_id(tokenizer)
    eos = "" if end is None else tokenizer.id_to_token(end)
    bos = next((token for token in USUAL_STARTS if tokenizer.token_to_id(token) is not None), eos)
    named = {"bos_token": bos, "eos_token": eos} | given_names(config)
    return {name: token for name, token in named.items() if token}


def given_names(config: Mapping[str, Any]) -> dict[str, str | None]:
    """The names of special tokens that a tokenizer_config.json gives: each with its token, or None."""
    given = {name: config[name] for name in NAMES if name in config}
    contents = {name: token.get("content") if isinstance(token, dict) else token for name, token in given.items()}
    return {name: content if isinstance(content, str) else None for name, content in contents.items()}


def encode(tokenizer: Tokenizer, text: str, special: bool = False) -> list[int]:
    """Ids of a prompt. The text of a special token is encoded like any other text, unless `special`."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"The prompt holds half of a character (U+{ord(text[error.start]):04X}, a surrogate) at "
            f"position {error.start}. Give it as valid Unicode."
        ) from None
    with _library_errors(PromptError, "The tokenizer cannot encode the prompt"):
        if unknown := unknown_characters(tokenizer, text):
            raise PromptError(
                f"The model has never seen {_names(unknown)}: its tokens are only those of its corpus. "
                "Leave that out, or train with data.tokenizer = byte or bpe:N."
            )
        tokenizer.encode_special_tokens = not special
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def name(tokenizer: Tokenizer, token: int) -> str:
    """The text of one token; of bytes that are no character by themselves, the bytes: `bytes:\\xe2\\x82`."""
    text = decode(tokenizer, [token])
    written: str = tokenizer.id_to_token(token) or ""
    if "\N{REPLACEMENT CHARACTER}" not in text or text == written or kind(tokenizer) not in ("byte", "bpe"):
        return text
    spelt = _byte_vocabulary()
    return "bytes:" + "".join(f"\\x{spelt[character]:02x}" for character in written)


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids; special tokens are shown by name."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False)
    return text


def spell(tokenizer: Tokenizer, number: int) -> str:
    """The text of one id. A model may have more rows than there are tokens; such a row has a placeholder."""
    return decode(tokenizer, [number]) if number < tokenizer.get_vocab_size() else f"<row {number}: no token>"


def unknown_characters(tokenizer: Tokenizer, text: str) -> list[str]:
    """The parts of a text without an id, in order: characters, or words if the tokens are words.

    Always empty for a tokenizer that can spell anything, or that has a token for the unknown.
    """
    model = tokenizer.model
    if isinstance(model, models.BPE) and model.unk_token is None:
        lacking = _lacking_symbols(tokenizer, "".join(set(text)))
        return sorted(c for c in set(text) if _lacking_symbols(tokenizer, c)) if lacking else []
    if not isinstance(model, models.WordLevel) or tokenizer.token_to_id(model.unk_token) is not None:
        return []
    known = tokenizer.get_vocab(with_added_tokens=False)
    parts: Iterable[str] = text
    if kind(tokenizer) != "char":
        normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
        before = tokenizer.pre_tokenizer
        parts = (part for part, _ in before.pre_tokenize_str(normalized)) if before else [normalized]
    return sorted({part for part in parts if part and part not in known})


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of the token for unknown text, if there is one."""
    model = tokenizer.model
    if isinstance(model, models.Unigram):
        found: int | None = json.loads(tokenizer.to_str())["model"]["unk_id"]
        return found
    name = getattr(model, "unk_token", None)
    known: int | None = tokenizer.token_to_id(name) if name else None
    return known


def bulk_encoder(tokenizer: Tokenizer) -> BulkEncoder:
    """Many texts to ids, fast: a NumPy table for char and byte, all cores for the others.

    The function that is returned gives the ids of all texts, one after the other, and the place where those of
    each text end. It raises CorpusError where `encode` raises PromptError.
    """
    what = kind(tokenizer)
    if what == "byte":
        return _encode_bytes
    if what == "char":
        return _char_encoder(tokenizer)
    tokenizer.encode_special_tokens = True
    # BPE leaves out what it lacks without a word; the other models raise.
    silent = isinstance(tokenizer.model, models.BPE) and tokenizer.model.unk_token is None
    checked = np.full(sys.maxunicode + 1, not silent)  # by code point

    def encode_batch(texts: Sequence[str]) -> tuple[Ids, NDArray[np.int64]]:
        if silent:
            points = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
            new = np.unique(points[~checked[points]])
            if unknown := unknown_characters(tokenizer, "".join(map(chr, new))):
                raise _lacking(unknown, _lacking_bytes(tokenizer, unknown))
            checked[new] = True
        try:
            with _library_errors(CorpusError, "The tokenizer cannot encode the text", "Give another data.tokenizer."):
                encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except CorpusError:
            if unknown := unknown_characters(tokenizer, "\n".join(texts)):
                raise _lacking(unknown) from None
            raise
        lists = [encoding.ids for encoding in encodings]
        ends = np.cumsum([len(ids) for ids in lists], dtype=np.int64)
        return np.fromiter(chain.from_iterable(lists), np.uint32, int(ends[-1]) if lists else 0), ends

    return encode_batch


@contextmanager
def _library_errors(kind: type[VitrineError], what: str, then: str = "") -> Iterator[None]:
    """The library raises bare Exceptions; where it panics (a pattern backtracks too long), no Exception at all."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise kind(f"{what}: {error}. {then}".strip()) from None


def _encode_bytes(texts: Sequence[str]) -> tuple[Ids, NDArray[np.int64]]:
    raw = [text.encode("utf-8") for text in texts]
    return np.frombuffer(b"".join(raw), np.uint8).astype(np.uint32), np.cumsum([*map(len, raw)], dtype=np.int64)


def _char_encoder(tokenizer: Tokenizer) -> BulkEncoder:
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    lacking = np.uint32(2**32 - 1)
    table = np.full(max(map(ord, vocabulary), default=0) + 2, lacking, np.uint32)  # the last row: anything beyond
    for character, index in vocabulary.items():
        table[ord(character)] = index

    def encode_texts(texts: Sequence[str]) -> tuple[Ids, NDArray[np.int64]]:
        whole = "".join(texts)
        ids: Ids = table.take(np.frombuffer(whole.encode("utf-32-le"), np.uint32), mode="clip")
        if ids.size and ids.max() == lacking:
            raise _lacking(unknown_characters(tokenizer, whole))
        return ids, np.cumsum([*map(len, texts)], dtype=np.int64)

    return encode_texts


def _lacking_symbols(tokenizer: Tokenizer, text: str) -> set[str]:
    """The symbols without a BPE token, after normalization and pre-tokenization: characters, or letters for bytes."""
    model, before = tokenizer.model, tokenizer.pre_tokenizer
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values() if not token.special}
    normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    parts = [part for part, _ in before.pre_tokenize_str(normalized)] if before else [normalized]
    around = {"", model.continuing_subword_prefix or ""}, {"", model.end_of_word_suffix or ""}
    return {
        symbol
        for symbol in set("".join(parts)) - added
        if all(model.token_to_id(first + symbol + last) is None for first in around[0] for last in around[1])
        and not (model.byte_fallback and all(model.token_to_id(f"<0x{b:02X}>") is not None for b in symbol.encode()))
    }


def _lacking(unknown: list[str], named_bytes: Sequence[str] = ()) -> CorpusError:
    more = f" and {len(named_bytes) - 8} more" if len(named_bytes) > 8 else ""
    of_bytes = f": it lacks the bytes {', '.join(named_bytes[:8])}{more}" if named_bytes else ""
    return CorpusError(
        f"The text holds {_names(unknown)}, which the tokenizer has no token for{of_bytes}. Leave that out, or use "
        "data.tokenizer = byte or bpe:N."
    )


def _lacking_bytes(tokenizer: Tokenizer, unknown: list[str]) -> list[str]:
    """The bytes that a byte-level tokenizer lacks of some characters."""
    if kind(tokenizer) != "bpe":
        return []
    spelt = _byte_vocabulary()
    return sorted(f"0x{spelt[symbol]:02x}" for symbol in _lacking_symbols(tokenizer, "".join(unknown)))


def _parts_characters(before: pre_tokenizers.Split) -> bool:
    state = json.loads(before.__getstate__())
    return (state["pattern"], state["behavior"], state["invert"]) == ({"Regex": _ANY_CHARACTER}, "Isolated", False)


def _byte_vocabulary() -> dict[str, int]:
    """An id for the character that byte-level tokenizers write for each byte: itself where it can be printed."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return {chr(byte if byte in printable else next(others)): byte for byte in range(256)}


def _names(parts: list[str]) -> str:
    named = [f"{part!r} (U+{ord(part):04X})" if len(part) == 1 else repr(part) for part in parts[:5]]
    more = f" and {len(parts) - 5} more" if len(parts) > 5 else ""
    return ", ".join(named) + more
