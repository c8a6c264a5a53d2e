"""The parameters of a small model for its report: with them, the page runs the model itself. Needs no torch.

web/src/lib/forward/alive.ts reads them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitrine.errors import RunError
from vitrine.runs.reader import TOKENIZER, RunReader
from vitrine.studio.report.bundle import VERSION, pack
from vitrine.studio.tiles import Floats, read_whole
from vitrine.text.portable import PortableTokenizer, portable
from vitrine.text.tokenizer import load_tokenizer

MOST = 1_000_000  # parameters of a model that is carried
TRAITS = ("norm", "norm_after", "positions", "gated", "query_key_norm")  # of a family: what the forward pass depends on
Numbers = Literal["", "float32", "bfloat16"]  # of the parameters in the file; empty: there are none


@dataclass(frozen=True)
class Parameters:
    """All parameters at a few steps, in the order of the run's tensors, and what else a forward pass needs."""

    values: dict[int, Floats]
    family: dict[str, Any]
    tokenizer: PortableTokenizer

    @property
    def steps(self) -> list[int]:
        """The steps that start from these parameters."""
        return list(self.values)

    def packed(self, numbers: Numbers) -> bytes:
        """A part for each step: first the lowest byte of every number, then the next; alike bytes compress well."""
        head = {
            "version": VERSION,
            "numbers": numbers,
            "steps": self.steps,
            "family": self.family,
            "tokenizer": self.tokenizer,
        }
        return pack(head, [_planes(values, numbers) for values in self.values.values()])


def read_parameters(reader: RunReader, keyframes: Sequence[int]) -> Parameters:
    """The parameters in the first keyframe, initialisation, and in the last. Raises RunError if a report cannot carry them."""
    count = sum(tensor.parameters for tensor in reader.tensors)
    if count > MOST:
        raise RunError(f"A report carries models of up to {MOST:,} parameters: this one has {count:,}.")
    try:
        reader.check_model()
    except RunError:
        raise RunError("A report carries Vitrine's own models only: this one is another program's.") from None
    tokenizer = portable(load_tokenizer(reader.path / TOKENIZER))
    if tokenizer is None:
        raise RunError(
            "A page can tokenize by characters, by bytes, or with byte-level BPE: this run's tokenizer differs."
        )
    family = reader.config.model.family
    ends = sorted({*keyframes[:1], *keyframes[-1:]})
    values = {step: whole for step in ends if (whole := read_whole(reader, step)) is not None}
    if not values:
        raise RunError("The run has no sound keyframe, so there are no parameters to carry.")
    return Parameters(values, {name: getattr(family, name) for name in TRAITS}, tokenizer)


def to_bfloat16(values: Floats) -> NDArray[np.uint16]:
    """The upper halves of float32, rounded to nearest, ties to even; the bits of bfloat16."""
    bits = values.astype("<f4").view("<u4").astype(np.uint64)  # room for the carry
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def _planes(values: Floats, numbers: Numbers) -> bytes:
    raw = to_bfloat16(values).astype("<u2") if numbers == "bfloat16" else values.astype("<f4")
    return raw.view(np.uint8).reshape(len(values), -1).T.tobytes()
