"""`vitrine plan`: the sums of `plan`, and the time, which is measured on this machine."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from vitrine.config import Config
from vitrine.model.inventory import Plan
from vitrine.recording.reporter import Reporter
from vitrine.runs import disk
from vitrine.text.summary import Summary
from vitrine.training import launch
from vitrine.training.timing import Probe


@dataclass(frozen=True)
class TimedPlan:
    """A plan, what was read, and what a few timed steps say about how long it takes. step_s: None if it does not fit."""

    config: Config
    plan: Plan
    summary: Summary
    step_s: float | None

    @property
    def duration_s(self) -> float | None:
        """Seconds of training steps, evaluations left out."""
        return None if self.step_s is None else self.step_s * self.config.training.steps

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
                    "birth": t.birth,
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
            "recording": dataclasses.asdict(disk.recording(self.config)),
            "tokens_per_step": plan.tokens_per_step,
            "step_s": self.step_s,
            "duration_s": self.duration_s,
            "reading": self.summary.to_json(),
            "config": self.config.model_dump(mode="json"),
        }

    def to_text(self) -> str:
        """What `plan` prints."""
        plan, config = self.plan, self.config
        width = max(len(t.name) for t in plan.tensors)
        lines = [f"{'tensor':<{width}}  {'kind':<10}{'shape':<16}{'parameters':>12}  birth"]
        for t in plan.tensors:
            shape = " x ".join(map(str, t.shape))
            birth = f"normal, spread {t.std:.4g}" if t.birth == "normal" else t.birth
            lines.append(f"{t.name:<{width}}  {t.kind:<10}{shape:<16}{t.parameters:>12,}  {birth}")
        lines.append(f"{'all':<{width}}  {'':<26}{plan.parameters:>12,}")
        memory = ", ".join(f"{part} {size_text(size)}" for part, size in plan.memory.items())
        lines += [
            "",
            *self.summary.lines(config),
            f"steps       {config.training.steps:,} of {plan.tokens_per_step:,} tokens",
            f"compute     {plan.flops_per_token:,} floating-point operations a token",
            f"memory      {size_text(plan.memory_bytes)} ({memory}; activations are an estimate), of "
            f"{size_text(plan.available_bytes)}",
            *self._recording_lines(),
        ]
        if self.step_s is None:
            lines.append(
                "It does not fit. Try a smaller training.batch_size with more training.accumulation, a shorter "
                "model.context, or a smaller preset."
            )
        else:
            lines.append(
                f"time        {_time_text(self.duration_s or 0)} ({_time_text(self.step_s)} a step, by a few "
                "timed ones; evaluations come on top)"
            )
        return "\n".join(lines)

    def _recording_lines(self) -> list[str]:
        """What the run will leave on disk, by the formulas of `budget`, and how long a re-entry takes."""
        kept, config = disk.recording(self.config), self.config.recording
        rarer = f" (or fewer, so that they cost {100 * config.statistics_cost:g}%)" if config.statistics_cost else ""
        seconds = "" if self.step_s is None else f", about {_time_text(kept.reentry_steps * self.step_s)}"
        return [
            f"keyframes   {kept.keyframes} of {size_text(kept.keyframe_bytes)}, every {config.keyframe_every} steps, "
            f"within {size_text(config.disk_budget)}",
            f"re-entry    of any step: {kept.reentry_steps} steps at most{seconds}",
            f"history     {size_text(kept.statistics_bytes)} of statistics every {config.statistics_every} steps{rarer}, "
            f"{size_text(kept.histogram_bytes)} of histograms; {size_text(kept.film_bytes)} of film, at most",
        ]


def plan(request: launch.Request, reporter: Reporter) -> TimedPlan:
    """Resolve a request, add it up, and time a few steps of it if it fits."""
    prepared = launch.prepare(request, reporter=reporter)
    sums = launch.sums(prepared.config)
    step_s = Probe(prepared.config, prepared.texts).step_s()[0] if sums.fits else None
    assert prepared.tokens.summary  # of token files that were looked for in the cache, there is one
    return TimedPlan(prepared.config, sums, prepared.tokens.summary, step_s)


def size_text(size: float) -> str:
    """Bytes, readable."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _time_text(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86400:,.0f} days"
