"""The text form of every result: what a command prints without --json, and what a notebook may print."""

import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrine.exchange.hf_export import Exported
    from vitrine.exchange.hf_import import Imported
    from vitrine.studio.report.command import Written
    from vitrine.text.cache import Contents
    from vitrine.training.evaluation import Evaluation
    from vitrine.training.plan import TimedPlan

WIDE = 100_000  # columns: neither a pipe nor a narrow terminal may cut a number


def text(result: Any) -> str:
    """A result for people, in plain characters, without a newline at its end."""
    return FORMS[type(result).__name__](result)


def table(rows: Iterable[Sequence[Any]], heads: Sequence[str] = (), left: int = 1, first: int = 0) -> list[str]:
    """Rows of cells as aligned lines.

    Args:
        heads: the columns' names; none: no line of names.
        left: so many columns are aligned to the left; the others, numbers, to the right.
        first: the least width of the first column.
    """
    from rich.console import Console  # slow to import
    from rich.table import Table
    from rich.text import Text

    rows = [[Text(str(cell)) for cell in row] for row in rows]
    form = Table(box=None, show_header=bool(heads), pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for place in range(len(heads) or max(map(len, rows), default=0)):
        head, side = Text(heads[place]) if heads else "", "left" if place < left else "right"
        form.add_column(head, justify=side, no_wrap=True, min_width=0 if place else first)  # type: ignore[arg-type]
    for row in rows:
        form.add_row(*row)
    console = Console(file=io.StringIO(), width=WIDE, color_system=None)
    with console.capture() as captured:
        console.print(form)
    return [line.rstrip() for line in captured.get().splitlines()]


def facts(pairs: Iterable[tuple[str, Any]]) -> list[str]:
    """A name and what there is to say of it on each line."""
    return table(pairs, left=2, first=10)


def _plan(planned: "TimedPlan") -> str:
    plan, config, kept = planned.plan, planned.config, planned.recording
    rows = [
        (
            t.name,
            t.kind,
            shape(t.shape),
            f"normal, standard deviation {t.std:.4g}" if t.initialisation == "normal" else t.initialisation,
            f"{t.parameters:,}",
        )
        for t in plan.tensors
    ]
    memory = ", ".join(f"{part} {size(part_bytes)}" for part, part_bytes in plan.memory.items())
    recording = config.recording
    rarer = f" (or fewer, so that they cost {100 * recording.statistics_cost:g}%)" if recording.statistics_cost else ""
    replay = "" if planned.step_s is None else f", about {duration(kept.reentry_steps * planned.step_s)}"
    pairs = [
        ("steps", f"{config.training.steps:,} of {plan.tokens_per_step:,} tokens"),
        ("compute", f"{plan.flops_per_token:,} floating-point operations per token"),
        (
            "memory",
            f"{size(plan.memory_bytes)} ({memory}; activations are an estimate), of {size(plan.available_bytes)}",
        ),
        (
            "keyframes",
            f"{kept.keyframes} of {size(kept.keyframe_bytes)}, every {recording.keyframe_every} steps, within "
            f"{size(recording.disk_budget)}",
        ),
        ("replay", f"of any step: {kept.reentry_steps} steps at most{replay}"),
        (
            "history",
            f"{size(kept.statistics_bytes)} of statistics every {recording.statistics_every} steps{rarer}, "
            f"{size(kept.histogram_bytes)} of histograms; {size(kept.film_bytes)} of film, at most",
        ),
    ]
    if planned.step_s is not None and planned.duration_s is not None:
        time = f"{duration(planned.duration_s)} ({duration(planned.step_s)} per step, measured over a few steps"
        pairs.append(("time", f"{time}; evaluations come on top)"))
    lines = [
        *table(
            [*rows, ("all", "", "", "", f"{plan.parameters:,}")],
            ("tensor", "kind", "shape", "initial values", "parameters"),
            4,
        ),
        "",
        *planned.summary.lines(config),
        *facts(pairs),
    ]
    if planned.step_s is None:
        lines.append(
            "It does not fit. Try a smaller training.batch_size with more training.accumulation, a shorter model.context, "
            "or a smaller preset."
        )
    return "\n".join(lines)


def _evaluation(found: "Evaluation") -> str:
    per_byte = "" if found.bits_per_byte is None else f", {found.bits_per_byte:.4f} bits per byte"
    return f"loss {found.loss:.4f} nats per token{per_byte}, perplexity {found.perplexity:.2f}, over {found.tokens:,} tokens"


def _exported(made: "Exported") -> str:
    return f"{made.path}: {made.model}, {made.parameters:,} parameters, as they were at step {made.step}"


def _imported(made: "Imported") -> str:
    return (
        f"{made.run}: {made.architecture}, {made.parameters:,} parameters from {made.source}\n"
        f"Try next: vitrine generate {made.run}, or vitrine train FILE --from {made.run}@0"
    )


def _report(written: "Written") -> str:
    report = written.report
    film = (
        f"{report.frames} of {report.frames_recorded} frames, {report.cells:,} of {report.parameters:,} parameters"
        + ("" if report.changes else ", without gradients and updates")
        if report.frames
        else "none was recorded"
    )
    steps = ", ".join(map(str, report.steps)) or "none"
    parts = {"film": film, "answers": f"in full: {steps}; the story of {report.cell}; curves, text, health", "page": ""}
    rows = [
        (
            "steps" if part == "answers" else part,
            f"{report.parts[part] / 1e6:.2f} MB" if part in report.parts else "",
            what,
        )
        for part, what in parts.items()
    ]
    return "\n".join(
        [
            f"{written.file}  {len(report.html) / 1e6:.2f} MB: opens by a double click, and needs no network",
            *table(rows, left=3),
            *(f"Step {step} is not in it: {reason}" for step, reason in report.refused.items()),
            written.warning,
        ]
    )


def _cache(found: "Contents") -> str:
    what = {"tokens": "token files of texts", "scans": "scans of sources", "corpora": "texts"}
    pairs = [("cache", str(found.folder))]
    for name, part in found.parts.items():
        shared = f", {part.shared_bytes / 1e6:,.1f} MB of it in run folders, too" if part.shared_bytes else ""
        pairs.append((name, f"{part.count:,} {what[name]}, {part.size_bytes / 1e6:,.1f} MB{shared}"))
    lines = facts(pairs)
    if found.cleared:
        lines.append(
            f"All that is gone: {found.own_bytes / 1e6:,.1f} MB are free again. A run that keeps its token files is as it "
            "was; one that points into the cache (more than 64 MiB of ids) makes them anew from its text."
        )
    else:
        lines.append(f"To free {found.own_bytes / 1e6:,.1f} MB: vitrine cache --clear")
    if found.kept_texts:
        lines.append(
            f"{found.kept_texts} texts that were pasted into the studio or came through a pipe stay in "
            f"{found.folder / 'corpora'}: there may be no other copy of them."
        )
    return "\n".join(lines)


FORMS: dict[str, Callable[[Any], str]] = {  # by the type's name: importing the types would load torch for every command
    "TimedPlan": _plan,
    "Evaluation": _evaluation,
    "Exported": _exported,
    "Imported": _imported,
    "Written": _report,
    "Contents": _cache,
}


def shape(lengths: Sequence[int]) -> str:
    """64 x 3."""
    return " x ".join(map(str, lengths))


def size(size_bytes: float) -> str:
    """Bytes, readable."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} TB"


def duration(seconds: float) -> str:
    """Seconds, readable."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86400:,.0f} days"
