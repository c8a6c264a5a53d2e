"""`vitrine plan`: size, compute and memory of a training, and its time, measured on this machine."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from vitrine.config import Config
from vitrine.model.inventory import Plan
from vitrine.recording.reporter import Reporter
from vitrine.runs import disk
from vitrine.runs.chosen import Chosen
from vitrine.text.summary import Summary
from vitrine.training.checks import plan_here
from vitrine.training.request import Request, prepare
from vitrine.training.timing import Probe
from vitrine.training.tokens import kept_bytes


@dataclass(frozen=True)
class TimedPlan:
    """A plan, what was read, and the time by a few timed steps. step_s: None if it does not fit."""

    config: Config
    chosen: dict[str, Chosen]
    plan: Plan
    summary: Summary
    step_s: float | None
    tokens_bytes: int

    @property
    def duration_s(self) -> float | None:
        """Seconds of training steps, evaluations left out."""
        return None if self.step_s is None else self.step_s * self.config.training.steps

    @property
    def recording(self) -> disk.Recording:
        """What the run will leave on disk."""
        return disk.recording(self.config)

    @property
    def disk_expected_bytes(self) -> int:
        """An estimate of the size of the run's folder at its end."""
        return self.recording.total_bytes + self.tokens_bytes

    def to_json(self) -> dict[str, Any]:
        """What `plan --json` prints."""
        plan = self.plan
        return {
            "parameters": plan.parameters,
            "tensors": [
                {
                    "name": t.name,
                    "shape": list(t.shape),
                    "kind": t.kind,
                    "parameters": t.parameters,
                    "birth": t.initialisation,
                    "std": t.std,
                }
                for t in plan.tensors
            ],
            "flops_per_token": plan.flops_per_token,
            "memory_bytes": plan.memory_bytes,
            "memory": plan.memory,
            "available_bytes": plan.available_bytes,
            "fits": plan.fits,
            "keyframe_bytes": plan.keyframe_bytes,
            "recording": dataclasses.asdict(self.recording),
            "disk_expected_bytes": self.disk_expected_bytes,
            "tokens_per_step": plan.tokens_per_step,
            "step_s": self.step_s,
            "duration_s": self.duration_s,
            "reading": dataclasses.asdict(self.summary),
            "config": self.config.model_dump(mode="json"),
            "chosen": {name: chosen._asdict() for name, chosen in self.chosen.items()},
        }


def plan(request: Request, reporter: Reporter) -> TimedPlan:
    """Resolve a request, plan it, and time a few steps if it fits into memory."""
    prepared = prepare(request, reporter)
    sums = plan_here(prepared.config)
    step_s = Probe(prepared.config, prepared.tokens).step_s()[0] if sums.fits else None
    assert prepared.tokens.summary  # token files from the cache always have one
    return TimedPlan(
        prepared.config, prepared.chosen, sums, prepared.tokens.summary, step_s, kept_bytes(prepared.tokens)
    )
