"""A tokenizer as plain data: with it, a report's page tokenizes prompts by itself (web/src/lib/forward/tokenize.ts)."""

import json
from typing import TypedDict

from tokenizers import Tokenizer

from vitrine.text.tokenizer import end_of_text_id, kind, start_id, unknown_id

# Of a BPE model: what our own tokenizers do without.
NOT_PORTABLE = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")


class PortableTokenizer(TypedDict):
    """How texts become ids and ids texts.

    kind: char: an id for each character; bytes: letters for the bytes of UTF-8, merged by `merges`, the first pair first.
    tokens: of each id, as the tokenizer spells it. special: ids that no text is given.
    words: whether a text is first split as GPT-2 does; prefix: whether a space is put before it.
    unknown: the id of a character without a token, if there is one. start: what an empty prompt stands for. end: ends a text.
    """

    kind: str
    tokens: list[str]
    special: list[int]
    merges: list[list[str]]
    words: bool
    prefix: bool
    unknown: int | None
    start: int
    end: int | None


def portable(tokenizer: Tokenizer) -> PortableTokenizer | None:
    """The plain data of a tokenizer by characters, by bytes, or byte-level BPE; None for all others."""
    what, state = kind(tokenizer), json.loads(tokenizer.to_str())
    model, before, added = state["model"], state["pre_tokenizer"], state["added_tokens"]
    if what == "other" or state["normalizer"] is not None or not all(token["special"] for token in added):
        return None
    by_bytes = what != "char"
    if by_bytes and any(model.get(key) for key in NOT_PORTABLE):
        return None
    own = tokenizer.get_vocab(with_added_tokens=False)
    tokens = [str(tokenizer.id_to_token(number)) for number in range(tokenizer.get_vocab_size())]
    return {
        "kind": "bytes" if by_bytes else "char",
        "tokens": tokens,
        "special": [number for number, token in enumerate(tokens) if token not in own],
        "merges": [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges", ())],
        "words": by_bytes and before["use_regex"],
        "prefix": by_bytes and before["add_prefix_space"],
        "unknown": unknown_id(tokenizer),
        "start": start_id(tokenizer),
        "end": end_of_text_id(tokenizer),
    }
