"""One step of a run, made once more and kept whole: its batch, losses, gradients, updates and optimizer state."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch import Tensor

from vitrine.config import Config
from vitrine.errors import RunError
from vitrine.inspection.probes import Probe, lens, probe
from vitrine.model.decoder import Decoder
from vitrine.model.entries import Parameters
from vitrine.model.loss import wide
from vitrine.optimizers.optimizer import Optimizer
from vitrine.recording import statistics
from vitrine.recording.recorder import StepLoss, to_numpy
from vitrine.runs.reader import RunReader
from vitrine.step import MicroBatch, State

if TYPE_CHECKING:
    from vitrine.inspection.comparisons import Comparisons

Floats = NDArray[np.float32]
LOGITS_KEPT = 2**26  # numbers: a step of a large vocabulary keeps the logits of its first rows only


@dataclass(frozen=True)
class ReplayedMicroBatch:
    """A micro-batch as the step saw it.

    inputs, targets: (rows, seq) token ids; losses: (rows, seq) nats; loss: their mean, as training computed it.
    logits: (kept rows, seq, vocab_size), of the training pass itself.
    """

    micro: MicroBatch
    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    losses: Floats
    loss: float
    logits: Floats


@dataclass(frozen=True)
class ReplayedTensor:
    """One tensor in one step. after = before + update, as float32 rounds it; the gradient is from before clipping.

    memory_before, memory_after: the optimizer's, by name.
    """

    before: Floats
    gradient: Floats
    update: Floats
    after: Floats
    memory_before: dict[str, Floats]
    memory_after: dict[str, Floats]


class StepTrace(StepLoss):
    """Copies what a step had, between its phases: flat buffers and numbers of the whole step.

    Args:
        whole: micro-batches and optimizer state too.
    """

    parameters: Parameters
    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    values: Tensor
    gradient: Tensor  # before clipping
    clipped: Tensor
    after: Tensor

    def __init__(self, whole: bool = False) -> None:
        super().__init__()
        self.whole = whole
        self.micro_batches: list[ReplayedMicroBatch] = []
        self.memory_before: dict[str, Tensor] = {}
        self.memory_after: dict[str, Tensor] = {}

    def micro_batch(self, micro: MicroBatch, logits: Tensor, loss: Tensor) -> None:
        """The batch and its losses."""
        super().micro_batch(micro, logits, loss)
        if not self.whole:
            return
        losses = F.cross_entropy(wide(logits.flatten(0, 1)), micro.targets.flatten(), reduction="none")
        rows = max(1, LOGITS_KEPT // logits[0].numel())
        self.micro_batches.append(
            ReplayedMicroBatch(
                micro,
                micro.inputs.cpu().numpy(),
                micro.targets.cpu().numpy(),
                to_numpy(losses.view(micro.targets.shape)),
                float(loss),
                to_numpy(wide(logits[:rows])),
            )
        )

    def gradients(self, state: State) -> None:
        """Before clipping."""
        self.parameters, self.step = state.parameters, state.step
        self.values, self.gradient = state.parameters.values.clone(), state.parameters.gradients.clone()
        if self.whole:
            self.memory_before = {name: memory.clone() for name, memory in state.optimizer.named_state().items()}

    def update(self, state: State) -> None:
        """After the update."""
        self.after, self.loss = state.parameters.values.clone(), self.take()
        self.gradient_norm, self.learning_rate = state.optimizer.gradient_norm, state.optimizer.learning_rate
        if self.whole:
            self.clipped = state.parameters.gradients.clone()
            self.memory_after = {name: memory.clone() for name, memory in state.optimizer.named_state().items()}

    @property
    def change(self) -> Tensor:
        """The update, as float32 rounds it."""
        return self.after - self.values


@dataclass
class ReplayedStep:
    """What a step saw, how wrong it was, its gradients, and what it changed.

    again: the loss of the same batch after the update; following: of the next batch.
    passed: the parameters that the steps since the keyframe before started from, this one included, by step.
    decoder, parameters, optimizer: of the replay, which may stand at another step by now.
    """

    reader: RunReader
    config: Config
    decoder: Decoder
    optimizer: Optimizer
    trace: StepTrace
    comparisons: "Comparisons"
    again: float
    following: float
    passed: dict[int, Tensor]

    def __post_init__(self) -> None:
        trace = self.trace
        self.step, self.micro_batches, self.parameters = trace.step, trace.micro_batches, trace.parameters
        self.loss, self.gradient_norm, self.learning_rate = trace.loss, trace.gradient_norm, trace.learning_rate
        self.values = trace.values  # what the step started from, flat
        clip = self.config.optimizer.clip
        self.clip_factor = clip / self.gradient_norm if clip and self.gradient_norm > clip else 1.0
        record = self.reader.step_record(self.step)
        self.recorded_loss = record.loss if record else None
        self.recorded_gradient_norm = record.gradient_norm if record else None

    @cached_property
    def norms(self) -> dict[str, dict[str, float]]:
        """Of weight, gradient and update: the norm of each tensor, by name."""
        entries = self.parameters.entries
        flats = {"weight": self.trace.values, "gradient": self.trace.gradient, "update": self.trace.change}
        found = {}
        for kind, flat in flats.items():
            norms = dict(zip(entries.by_name, to_numpy(statistics.norms(entries, flat)).tolist(), strict=True))
            found[kind] = {plan.name: norms[plan.name] for plan in self.reader.tensors}
        return found

    @cached_property
    def recorded_norms(self) -> dict[str, dict[str, float | None]]:
        """The same as training recorded them (None: it did not)."""
        layout, row = self.reader.layout(), self.reader.statistics_at(self.step)
        return {
            kind: {
                name: None if row is None or not layout else float(row[layout.statistic(name, f"{kind}_norm")])
                for name in norms
            }
            for kind, norms in self.norms.items()
        }

    @property
    def exact(self) -> bool:
        """Whether this is the very step that training made: every comparison that could be made held."""
        return self.comparisons.exact

    @property
    def update_norm(self) -> float:
        """The length of the whole update, over all tensors."""
        return math.sqrt(sum(norm**2 for norm in self.norms["update"].values()))

    @property
    def recorded_update_norm(self) -> float | None:
        """The same from the norms that were recorded."""
        recorded = [norm for norm in self.recorded_norms["update"].values() if norm is not None]
        return math.sqrt(sum(norm**2 for norm in recorded)) if recorded else None

    @property
    def size_bytes(self) -> int:
        """The memory that it takes."""
        memories = sum(memory.nbytes for memory in self.trace.memory_before.values())
        logits = sum(batch.logits.nbytes for batch in self.micro_batches)
        return (4 + len(self.passed)) * self.values.nbytes + 2 * memories + logits

    @property
    def tensors(self) -> Mapping[str, ReplayedTensor]:
        """Every tensor's numbers, by name."""
        return {plan.name: self.tensor(plan.name) for plan in self.reader.tensors}

    def tensor(self, name: str) -> ReplayedTensor:
        """One tensor's numbers."""
        entry, trace = self.parameters.entries.by_name[name], self.trace
        before, gradient, after = (to_numpy(entry.view(flat)) for flat in (trace.values, trace.gradient, trace.after))
        kinds = self.optimizer.memory(self.config.optimizer, entry.hidden)
        memories = (
            {kind: to_numpy(named[f"{name}.{kind}"]) for kind in kinds}
            for named in (trace.memory_before, trace.memory_after)
        )
        return ReplayedTensor(before, gradient, after - before, after, *memories)

    def save(self, path: Path) -> None:
        """Write every tensor to a safetensors file, as NAME.before, .gradient, .update, .after, and .MEMORY after it."""
        arrays = {}
        for name, tensor in self.tensors.items():
            for part in ("before", "gradient", "update", "after"):
                arrays[f"{name}.{part}"] = getattr(tensor, part)
            arrays |= {f"{name}.{kind}": memory for kind, memory in tensor.memory_after.items()}
        try:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path} cannot be written: {error}. Give --save a file in a folder that exists.") from None

    def probe(self, row: int = 0) -> Probe:
        """Look inside the forward pass, by a second pass over the first micro-batch with the same dropout."""
        batch = self.micro_batches[0]
        if not 0 <= row < len(batch.inputs):
            raise RunError(f"--row must be one of the {len(batch.inputs)} rows of the batch: got {row}. Try --row 0.")
        with self.model() as decoder:
            seen = probe(decoder, batch.micro.inputs, batch.micro.dropout_keys, row)
        if row < len(batch.logits):
            seen.difference = float(np.abs(seen.logits - batch.logits[row]).max())
        return seen

    def lens(self, seen: Probe, token: int) -> Floats:
        """What each layer's residual stream at a token would predict. (n_layers + 1, vocab_size) logits."""
        with self.model() as decoder:
            return lens(decoder, seen.streams[:, token])

    @contextmanager
    def model(self) -> Iterator[Decoder]:
        """The model with the parameters that the step started from, for a moment."""
        tensors, then = self.parameters.tensors, self.parameters.entries.named(self.values)
        now = {name: tensor.clone() for name, tensor in tensors.items()}
        try:
            for name, tensor in tensors.items():
                tensor.copy_(then[name])
            yield self.decoder
        finally:
            for name, tensor in tensors.items():
                tensor.copy_(now[name])
