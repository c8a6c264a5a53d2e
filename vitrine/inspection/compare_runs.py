"""Runs side by side: the hyperparameters that differ, their curves by step, tokens and time, and their samples.

Needs no torch. At step N a run has learned from N times the tokens of a step, for the seconds that its recorded steps
before N took; evaluations and keyframes are not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrine._json import CONSTANTS, plain
from vitrine.errors import RunError
from vitrine.runs.downsample import downsample
from vitrine.runs.reader import RunReader, is_training
from vitrine.runs.records import EvaluationRecord, SampleRecord

LEAST, MOST = 2, CONSTANTS["limits"]["compared_runs"]  # runs in one comparison
SAMPLES, CHARACTERS = 6, 2000  # of each run, and of each text


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs, as it stands. steps, losses: of every recorded step; seconds: before each of them."""

    name: str
    reader: RunReader
    made: int
    steps: NDArray[np.int64]
    losses: NDArray[np.float64]
    seconds: NDArray[np.float64]
    pixels: int

    @classmethod
    def look_at(cls, name: str, reader: RunReader, pixels: int) -> "ComparedRun":
        """Read what there is of a run."""
        steps, losses = reader.step_column("loss")
        _, took = reader.step_column("duration_s")
        count = min(len(steps), len(took))  # it may grow between the two
        seconds = np.concatenate([[0.0], np.cumsum(took[:count])])
        return cls(name, reader, reader.steps_made(), steps[:count], losses[:count], seconds, pixels)

    @property
    def parameters(self) -> int:
        """Learned numbers."""
        return sum(plan.parameters for plan in self.reader.tensors)

    @property
    def best(self) -> tuple[int, float] | None:
        """The step with the least validation loss, and that."""
        best = self.reader.best_evaluation()
        return (best.step, best.loss) if best else None

    @property
    def sampled(self) -> EvaluationRecord | None:
        """The last that was measured by the sample that all are measured by."""
        measured = self.reader.sampled_evaluations()
        return measured[-1] if measured else None

    @property
    def train_loss(self) -> float | None:
        """Of the batch of the last recorded step."""
        return float(self.losses[-1]) if len(self.losses) else None

    def to_json(self) -> dict[str, Any]:
        """All of it; null for what is not finite."""
        config, best = self.reader.config, self.best
        return {
            "name": self.name,
            "parameters": self.parameters,
            "architecture": config.model.architecture,
            "steps": config.training.steps,
            "steps_made": self.made,
            "training": is_training(self.reader.path),
            "result": self.reader.result() or None,
            "best": {"step": best[0], "loss": best[1]} if best else None,
            "train_loss": self.train_loss,
            "val_loss": self.sampled.loss if self.sampled else None,
            "val_tokens": self.sampled.tokens if self.sampled else 0,
            "seconds": float(self.seconds[-1]),
            "tokens": self.made * config.tokens_per_step,
            "loss": self._loss(),
            "validation": self._validation(),
            "samples": self.samples(),
        }

    def samples(self) -> list[SampleRecord]:
        """A few of the texts that it wrote, the first and the last among them, and each cut off where it is long."""
        written = self.reader.samples()
        places = sorted({round(place) for place in np.linspace(0, len(written) - 1, SAMPLES)}) if written else []
        return [
            SampleRecord(s.step, s.prompt[:CHARACTERS], s.text[:CHARACTERS], s.temperature, s.seed)
            for s in (written[place] for place in places)
        ]

    def _loss(self) -> dict[str, Any]:
        steps, low, high = downsample(self.steps, self.losses, self.pixels)
        return self._axes(steps) | {"low": low.tolist(), "high": high.tolist()}

    def _validation(self) -> dict[str, Any]:
        measured = self.reader.sampled_evaluations()
        every = max(1, -(-len(measured) // self.pixels))
        shown = [e for place, e in enumerate(measured) if place % every == 0 or place == len(measured) - 1]
        return self._axes(np.array([e.step for e in shown], np.int64)) | {"loss": [e.loss for e in shown]}

    def _axes(self, steps: NDArray[np.int64]) -> dict[str, Any]:
        """The same steps in tokens and in seconds; without recorded steps there is no time."""
        before = self.seconds[np.searchsorted(self.steps, steps)] if len(self.steps) else np.full(len(steps), np.nan)
        tokens = steps * self.reader.config.tokens_per_step
        return {"steps": steps.tolist(), "tokens": tokens.tolist(), "seconds": before.tolist()}


@dataclass(frozen=True)
class Comparison:
    """Some runs, and the hyperparameters in which they differ: by dotted key, a value for each run."""

    runs: tuple[ComparedRun, ...]
    differs: dict[str, list[Any]]

    @property
    def other_tokens(self) -> bool:
        """Whether a token is not the same in all of them, so that a loss per token is not, either."""
        return bool(self.differs.keys() & {"data.tokenizer", "model.vocab_size"})

    def to_json(self) -> dict[str, Any]:
        """What `compare --json` prints."""
        differs = [{"key": key, "values": values} for key, values in self.differs.items()]
        runs = [plain(run.to_json()) for run in self.runs]
        return {"runs": runs, "differs": differs, "same_tokens": not self.other_tokens}


def compare(runs: Sequence[tuple[str, RunReader]], pixels: int = 400) -> Comparison:
    """Put runs side by side. Raises RunError for too few, too many, or one that is named twice.

    Args:
        runs: what each is called, and its reader.
        pixels: points of each curve.
    """
    if not LEAST <= len(runs) <= MOST:
        raise RunError(f"{LEAST} to {MOST} runs can be compared: got {len(runs)}.")
    paths = [reader.path.resolve() for _, reader in runs]
    if twice := next((name for (name, _), path in zip(runs, paths, strict=True) if paths.count(path) > 1), None):
        raise RunError(f"{twice} is named twice. Name each run once.")
    flat = [_flat(reader.config.model_dump(mode="json")) for _, reader in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    values = {key: [settings.get(key) for settings in flat] for key in keys}
    differs = {key: found for key, found in values.items() if any(value != found[0] for value in found)}
    return Comparison(tuple(ComparedRun.look_at(name, reader, pixels) for name, reader in runs), differs)


def _flat(settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, keys in settings.items() for key, value in keys.items()}
