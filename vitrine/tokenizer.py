"""Text to token ids and back. Every tokenizer is a Hugging Face `tokenizers.Tokenizer`.

Three kinds are made here: `char` (an id per character of the corpus), `byte` (an id per byte of UTF-8) and
`bpe` (byte pairs merged by frequency, as GPT-2 has it). Any other comes as a tokenizer.json.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from vitrine.errors import ConfigError, CorpusError, PromptError

END_OF_TEXT = "<|endoftext|>"
USUAL_ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>")

Ids = NDArray[np.uint32]


def char_tokenizer(alphabet: str) -> Tokenizer:
    """A token per character, in code-point order. It has no end-of-text token and knows no other character."""
    vocabulary = {character: index for index, character in enumerate(sorted(set(alphabet)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """A token per byte of UTF-8: the id is the byte, and 256 is the end of text."""
    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
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
    """Read a tokenizer.json."""
    if not path.is_file():
        raise ConfigError(
            f"There is no tokenizer at {path}. Give data.tokenizer auto, char, byte, bpe:N, or the path "
            "of a tokenizer.json."
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise ConfigError(f"{path} is not a tokenizer.json that the tokenizers library can read: {error}.") from None


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer.json."""
    path.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")


def kind(tokenizer: Tokenizer) -> str:
    """char, byte, bpe or other."""
    described = json.loads(tokenizer.to_str())
    model, pre = described["model"], described.get("pre_tokenizer") or {}
    if model["type"] == "WordLevel" and pre.get("type") == "Split" and _knows_only_characters(tokenizer):
        return "char"
    if model["type"] == "BPE" and pre.get("type") == "ByteLevel":
        return "bpe" if model["merges"] or pre.get("use_regex", True) else "byte"
    return "other"


def end_of_text_id(tokenizer: Tokenizer) -> int | None:
    """The id of the token that ends a document, if the tokenizer has one."""
    if kind(tokenizer) == "char":
        return None
    for name in USUAL_ENDS:
        found: int | None = tokenizer.token_to_id(name)
        if found is not None:
            return found
    return None


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a prompt. The text of a special token is text like any other."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"The prompt holds half of a character (U+{ord(text[error.start]):04X}, a surrogate) at "
            f"position {error.start}. Give it as valid Unicode."
        ) from None
    unknown = unknown_characters(tokenizer, text)
    if unknown:
        raise PromptError(
            f"The model has never seen {_names(unknown)}: its tokens are the characters of its corpus. "
            "Leave such characters out, or train with data.tokenizer = byte or bpe:N."
        )
    tokenizer.encode_special_tokens = True
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids; special tokens are shown by name."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False)
    return text


def unknown_characters(tokenizer: Tokenizer, text: str) -> list[str]:
    """Characters of a text that a character tokenizer has no id for, in order; others know them all."""
    if kind(tokenizer) != "char":
        return []
    known = tokenizer.get_vocab(with_added_tokens=False)
    return sorted({character for character in text if character not in known})


def bulk_encoder(tokenizer: Tokenizer) -> Callable[[Sequence[str]], list[Ids]]:
    """Texts to ids, fast: a NumPy table for char and byte, all cores for the others.

    A character that a char tokenizer lacks raises CorpusError.
    """
    what = kind(tokenizer)
    if what == "byte":
        return lambda texts: [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.uint32) for text in texts]
    if what == "char":
        return _char_encoder(tokenizer)
    tokenizer.encode_special_tokens = True

    def encode_batch(texts: Sequence[str]) -> list[Ids]:
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    return encode_batch


def _char_encoder(tokenizer: Tokenizer) -> Callable[[Sequence[str]], list[Ids]]:
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    lacking = np.uint32(2**32 - 1)
    table = np.full(max(map(ord, vocabulary)) + 2, lacking, np.uint32)  # the last row: anything beyond
    for character, index in vocabulary.items():
        table[ord(character)] = index

    def encode_text(text: str) -> Ids:
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        ids: Ids = table[np.minimum(points, len(table) - 1)]
        if ids.size and ids.max() == lacking:
            raise CorpusError(
                f"The text holds {_names(unknown_characters(tokenizer, text))}, which the tokenizer has "
                "no token for. Leave such characters out, or use data.tokenizer = byte or bpe:N."
            )
        return ids

    return lambda texts: [encode_text(text) for text in texts]


def _knows_only_characters(tokenizer: Tokenizer) -> bool:
    return all(len(token) == 1 for token in tokenizer.get_vocab(with_added_tokens=False))


def _byte_characters() -> list[str]:
    """The character that byte-level tokenizers write for each byte: itself where it can be printed."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _names(characters: list[str]) -> str:
    named = [f"{character!r} (U+{ord(character):04X})" for character in characters[:5]]
    more = f" and {len(characters) - 5} more" if len(characters) > 5 else ""
    return ", ".join(named) + more
