"""Token ids from other tools: nanoGPT's .bin, uint16 numbers without a header, for a given tokenizer."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vitrine.errors import CorpusError
from vitrine.text.sources import Meter, Scan, Source
from vitrine.text.tokenizer import end_of_text_id, kind

ENDING = ".bin"
CHUNK_BYTES = 8 * 2**20

Ids = NDArray[np.uint16]


class IdPart(NamedTuple):
    """Ids of one side. starts: the places in them where a document starts; goes_on: the first one, before the cut.

    file: index into the source's files; offset: of the first id, in bytes.
    """

    ids: Ids
    file: int
    offset: int
    held: bool
    starts: NDArray[np.int64]
    goes_on: bool


def holds_ids(source: Source) -> bool:
    """Whether a source contains token ids instead of text."""
    kinds = {file.suffix == ENDING for file in source.files}
    if len(kinds) > 1:
        raise CorpusError(f"{source.spec} matches files of token ids ({ENDING}) and of text. Give them as two sources.")
    return kinds == {True}


def scan_ids(source: Source) -> Scan:
    """Their digest and their count, as `characters`. Raises CorpusError if there are none."""
    meter = Meter()
    for file, size in zip(source.files, source.sizes, strict=True):
        if size % 2:
            raise CorpusError(f"{file} has {size:,} bytes, an odd number: it is not uint16 token ids, or was cut.")
        meter.read_whole(file)
        meter.end_file(file)
    if not meter.size_bytes:
        raise CorpusError(f"{source.spec} holds no token ids. Give a file that is not empty.")
    return Scan(meter.total.hexdigest(), 1, meter.size_bytes // 2, meter.size_bytes, "", tuple(meter.file_digests))


def id_parts(source: Source, meter: Meter, tokenizer: Tokenizer, cut: int) -> Iterator[IdPart]:
    """All ids in order; those from `cut` on are held back. Raises CorpusError for an id that the tokenizer lacks."""
    known, end_id = tokenizer.get_vocab_size(), end_of_text_id(tokenizer)
    done = 0
    for number, file in enumerate(source.files):
        place, open_ended = 0, False  # ids of this file so far; whether a document is under way
        with open(file, "rb") as handle:
            while raw := handle.read(CHUNK_BYTES):
                meter.add(raw)
                ids = np.frombuffer(raw[: len(raw) // 2 * 2], "<u2")
                if ids.size and ids.max() >= known:
                    first = int(np.argmax(ids >= known))
                    raise CorpusError(
                        f"{file} has the id {ids[first]} at place {place + first:,}, and the tokenizer {known:,} tokens: "
                        f"0 to {known - 1:,}. Give the tokenizer that these ids were made with as data.tokenizer."
                    )
                before = min(len(ids), max(0, cut - done))
                for part, held in ((ids[:before], False), (ids[before:], True)):
                    if not len(part):
                        continue
                    ends = np.flatnonzero(part == end_id) + 1 if end_id is not None else np.zeros(0, np.int64)
                    starts = ends[ends < len(part)]
                    at_cut = held and done == cut
                    if at_cut or not open_ended:
                        starts = np.concatenate(([0], starts))
                    yield IdPart(part, number, 2 * place, held, starts, at_cut and open_ended)
                    open_ended = not (len(ends) and ends[-1] == len(part))
                    place, done = place + len(part), done + len(part)
        meter.end_file(file)


def byte_counter(tokenizer: Tokenizer) -> Callable[[Ids], int]:
    """How many UTF-8 bytes the text of ids has; special tokens have none."""
    if kind(tokenizer) not in ("byte", "bpe"):
        return lambda ids: len(tokenizer.decode(ids.tolist(), skip_special_tokens=True).encode("utf-8"))
    # Byte-level: a token is spelled with one character for each of its bytes.
    sizes = np.array(
        [len(tokenizer.id_to_token(number) or "") for number in range(tokenizer.get_vocab_size())], np.int64
    )
    for number, token in tokenizer.get_added_tokens_decoder().items():
        sizes[number] = 0 if token.special else len(token.content.encode("utf-8"))
    return lambda ids: int(sizes[ids].sum())


def validation_beside(corpus: Sequence[str]) -> list[str]:
    """nanoGPT's val.bin, if it lies beside the token ids, and nothing else is learned from."""
    files = [Path(spec) for spec in corpus]
    if not all(file.suffix == ENDING for file in files):
        return []
    beside = dict.fromkeys(file.with_name("val.bin") for file in files)
    return [str(file) for file in beside if file.is_file() and file not in files]


def check_tokenizer(sources: Sequence[Source], name: str) -> None:
    """Raises CorpusError unless a tokenizer is given: ids mean nothing without the one that made them."""
    if name in ("auto", "char") or name.startswith("bpe:"):
        for source in filter(holds_ids, sources):
            raise CorpusError(
                f"{source.spec} holds token ids, which say nothing without their tokenizer: data.tokenizer = {name} "
                "would be learned from text. Give the tokenizer.json that they were made with (GPT-2's has 50,257 ids), "
                "or byte."
            )
