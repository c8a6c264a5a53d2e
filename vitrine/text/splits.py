"""The split into training and validation text: by document, or by a cut near the end."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitrine.text.scans import changed
from vitrine.text.sources import Meter, Reading, Scan, Source, pieces

Kind = Literal["end", "documents"]
MANY = 20  # documents; of more than so many, whole ones are held back


class Part(NamedTuple):
    """A part of a document, on one side. starts: whether it is the first of the document on this side.

    ends, file, offset: as in a `Piece`.
    """

    text: str
    ends: bool
    file: int
    offset: int
    held: bool
    starts: bool


@dataclass(frozen=True)
class Split:
    """A source, and what of it is validation text.

    share: of its characters, at its end. held: by document, whether it is; None: the share counts.
    """

    source: Source
    facts: Scan
    share: float
    held: NDArray[np.bool_] | None = None

    @property
    def train_characters(self) -> int:
        """Characters of training text; if whole documents are held back, as many as their bytes suggest."""
        share = self.share
        if self.held is not None:
            share = float(self.facts.document_bytes[self.held].sum() / self.facts.document_bytes.sum())
        return math.floor(self.facts.characters * (1 - share) + 1e-9)

    def parts(self, reading: Reading, meter: Meter) -> Iterator[Part]:
        """All of its text, in order. meter: hashes all that is read."""
        if self.held is None:
            yield from self._cut(reading, meter)
            return
        held, number, starts = self.held.tobytes(), 0, True
        for piece in pieces(self.source, reading, meter):
            if number == len(held):  # it has more documents than when it was scanned
                raise changed(self.source.spec)
            yield Part(*piece, bool(held[number]), starts)
            number, starts = number + piece.ends, piece.ends

    def _cut(self, reading: Reading, meter: Meter) -> Iterator[Part]:
        left, starts = self.train_characters, True
        for piece in pieces(self.source, reading, meter):
            text, ends, file, offset = piece
            if left >= len(text):
                yield Part(text, ends, file, offset, False, starts)
            elif left > 0:
                yield Part(text[:left], False, file, offset, False, starts)
                yield Part(text[left:], ends, file, offset, True, True)
            else:
                yield Part(text, ends, file, offset, True, starts or left == 0)
            left, starts = left - len(text), ends


def choose_split(scans: Sequence[Scan]) -> Kind:
    """The default split: whole documents, if there are more than a few, and a source has several."""
    many = sum(facts.documents for facts in scans) > MANY
    return "documents" if many and any(len(np.unique(facts.document_keys)) > 1 for facts in scans) else "end"


def choose_documents(scans: Sequence[Scan], share: float) -> list[NDArray[np.bool_] | None]:
    """For each source, which of its documents are held back; None for one that has no two different documents.

    A document's key follows from its text alone (`text.document_key`). In the order of the keys, documents are taken until
    the share of the source's bytes is reached, as nearly as whole ones allow; one at least stays on either side. What is
    held back of one source is held back of all, so that equal documents are never on both sides.
    """
    chosen = [_least_keys(facts, share) for facts in scans]
    held = np.unique(np.concatenate([keys for keys in chosen if keys is not None] or [np.zeros(0, np.uint64)]))
    return [
        None if keys is None else np.isin(facts.document_keys, held) for keys, facts in zip(chosen, scans, strict=True)
    ]


def _least_keys(facts: Scan, share: float) -> NDArray[np.uint64] | None:
    keys, places = np.unique(facts.document_keys, return_inverse=True)
    if len(keys) < 2:
        return None
    taken = np.cumsum(np.bincount(places, weights=facts.document_bytes))  # if all up to this one are held back
    count = int(np.argmin(np.abs(taken[:-1] - share * taken[-1]))) + 1
    return keys[:count]
