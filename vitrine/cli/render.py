"""The text form of every result: what a command prints without --json, and what `vitrine.render` returns."""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrine.exchange.hf_export import Exported
    from vitrine.exchange.hf_import import Imported
    from vitrine.inspection.compare_runs import Comparison
    from vitrine.inspection.gradient_check import GradientCheck
    from vitrine.inspection.health import Health
    from vitrine.inspection.neuron import Neuron
    from vitrine.inspection.parameter import ParameterReport
    from vitrine.inspection.step_report import StepReport
    from vitrine.inspection.verify import Check
    from vitrine.inspection.views import Census, InitialParameters, Inspected, TensorView
    from vitrine.runs.film import Floats
    from vitrine.studio.report.command import Written
    from vitrine.text.cache import Contents
    from vitrine.training.evaluation import Evaluation
    from vitrine.training.plan import TimedPlan

BARS = " ▁▂▃▄▅▆▇█"
CELL, WRITTEN, CONNECTIONS = 28, 120, 12  # shown: characters of a hyperparameter and of a text, inputs of a neuron
LEVELS = {"ill": "error", "watch": "warning", "unknown": "unknown", "ok": "ok"}  # names of verdicts, worst first
SPREAD = ("norm", "mean", "std dev", "smallest", "largest")
WIDE = 100_000  # columns: no number is cut in a pipe or a narrow terminal


def render(result: Any) -> str:
    """A result as plain text, without a newline at its end."""
    return FORMS[type(result).__name__](result)


def table(
    rows: Iterable[Sequence[Any]], heads: Sequence[str] = (), left: int = 1, first: int = 0, last_left: bool = False
) -> list[str]:
    """Rows of cells as aligned lines.

    Args:
        heads: the columns' names; empty: no header.
        left: the number of columns aligned to the left; the others hold numbers and are aligned to the right.
        last_left: whether the last column is aligned to the left, too.
        first: the least width of the first column.
    """
    from rich.console import Console  # slow to import
    from rich.table import Table
    from rich.text import Text

    rows = [[Text(str(cell)) for cell in row] for row in rows]
    form = Table(box=None, show_header=bool(heads), pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    columns = len(heads) or max(map(len, rows), default=0)
    for place in range(columns):
        to_left = place < left or (last_left and place == columns - 1)
        head, side = Text(heads[place]) if heads else "", "left" if to_left else "right"
        form.add_column(head, justify=side, no_wrap=True, min_width=0 if place else first)  # type: ignore[arg-type]
    for row in rows:
        form.add_row(*row)
    console = Console(file=io.StringIO(), width=WIDE, color_system=None)
    with console.capture() as captured:
        console.print(form)
    return [line.rstrip() for line in captured.get().splitlines()] if rows else []


def facts(pairs: Iterable[tuple[str, Any]]) -> list[str]:
    """One line for each name and its text."""
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
    model = f"at steps {' and '.join(map(str, report.alive))}, in {report.numbers}: the page can run the model"
    parts = {
        "film": film,
        "model": model if report.alive else report.still,
        "answers": f"in full: {steps}; the history of {report.cell}; curves, text, health",
        "page": "",
    }
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
            f"{written.file}  {len(report.html) / 1e6:.2f} MB: a double click opens it, without a network",
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
            f"All of it was removed: {found.own_bytes / 1e6:,.1f} MB are free again. Runs that keep their token files are as they "
            "were; a run that points into the cache (more than 64 MiB of ids) makes them again from its text."
        )
    else:
        lines.append(f"To free {found.own_bytes / 1e6:,.1f} MB: vitrine cache --clear")
    if found.kept_texts:
        lines.append(
            f"{found.kept_texts} texts that were pasted into the studio or came through a pipe stay in "
            f"{found.folder / 'corpora'}: there may be no other copy of them."
        )
    return "\n".join(lines)


def _inspected(found: "Inspected") -> str:
    return render(found.view) + (f"\n\n{render(found.nudge)}" if found.nudge else "")


def _census(found: "Census") -> str:
    from vitrine.inspection.health import Health
    from vitrine.inspection.health_by_history import history_verdicts

    rows, counts = [], Counter[str]()
    for t in found.tensors:
        counts[t.kind] += t.parameters
        row = [t.name, t.kind, shape(t.shape), f"{t.parameters:,}"]
        if found.statistics:
            norms = [found.statistics[t.name][f"{what}_norm"] for what in ("weight", "gradient", "update")]
            row += [*(f"{norm:.4g}" for norm in norms), ratio(norms[2], norms[0])]
        rows.append(row)
    rows.append(["all", "", "", f"{counts.total():,}"])
    heads = ("tensor", "kind", "shape", "parameters", "weights", "gradient", "update", "update/weight")
    return "\n".join(
        [
            f"step {found.step} of {found.reader.path}, as it was recorded",
            *table(rows, heads, left=3),
            ", ".join(f"{count:,} in {kind}s" for kind, count in counts.items()),
            *([] if found.statistics else ["No statistics of tensors were recorded at this step."]),
            problems(Health(str(found.reader.path), history_verdicts(found.reader))),
        ]
    )


def _tensor(found: "TensorView") -> str:
    facts, tensor = found.to_json(), found.replayed.tensor(found.plan.name)
    rows = [
        (part, f"{facts[part]['norm']:.5g}", *spread(facts[part])[1:], histogram(getattr(tensor, part)))
        for part in ("before", "gradient", "update", "after")
    ]
    return "\n".join(
        [
            f"{found.plan.name}: {found.plan.parameters:,} parameters ({found.plan.kind}), {shape(found.plan.shape)}; "
            f"step {found.replayed.step}",
            *table(rows, ("", *SPREAD, "")),
            f"{100 * found.against_gradient:.1f}% of them moved against their own gradient",
            f"exact: {str(found.replayed.exact).lower()}",
        ]
    )


def _initial(found: "InitialParameters") -> str:
    facts = found.to_json()
    rows = [
        (t["name"], shape(t["shape"]), f"{t['parameters']:,}", *spread(t), histogram(found.tensors[t["name"]]))
        for t in facts["tensors"]
    ]
    lines = [f"step 0 of {found.path}, which has made no step yet"]
    if found.address and found.address.index:
        lines.append(f"{found.address.text} = {found.value:.9g} ({found.address.tensor.kind}), one of:")
    rows.append(("all", "", f"{facts['parameters']:,}"))
    return "\n".join([*lines, *table(rows, ("tensor", "shape", "parameters", *SPREAD, ""), left=2)])


def _parameter(found: "ParameterReport") -> str:
    facts, rule = found.to_json(), found.rule
    moved = found.gradient * found.update
    way = "against" if moved < 0 else "along" if moved > 0 else "beside"
    values = [
        ("step 0", facts["birth"], "initial value"),
        (f"step {found.step}", facts["before"], "before"),
        ("gradient", facts["gradient"], "before clipping"),
        ("update", facts["update"], f"{way} the gradient"),
        ("after", facts["after"], ""),
    ]
    terms = [*rule.terms.items(), ("sum by the rule", rule.total)]
    points, every = found.history, max(1, (len(found.history) - 1) / 7)
    shown = [points[round(i * every)] for i in range(min(8, len(points)))]
    return "\n".join(
        [
            f"{found.address.text}, {'an' if found.kind[0] in 'aeio' else 'a'} {found.kind}",
            found.connects,
            "",
            *table([(name, str(value), note) for name, value, note in values], left=3),
            "",
            f"{rule.optimizer}: {rule.formula}",
            *indented(table([(name, f"{value:.9g}") for name, value in terms])),
            *([f"  {rule.note}"] if rule.note else []),
            f"plain SGD with the same gradient and learning rate: {found.plain_sgd:.9g}",
            "",
            f"history   {len(points)} points; "
            + ", ".join(f"{step}: {'' if exact else '≈ '}{value:.5g}" for step, value, exact in shown),
            f"exact: {str(found.exact).lower()}",
        ]
    )


def _gradient_check(found: "GradientCheck") -> str:
    rows = [
        (f"{size:+.4g}", f"{loss:.12g}", f"{loss - found.loss:+.6g}", f"{size * found.run_gradient:+.6g}")
        for size, loss in zip(found.sizes, found.losses, strict=True)
    ]
    return "\n".join(
        [
            f"nudge {found.parameter}, by the loss of this batch in float64: {found.loss:.12g}",
            f"gradient: {found.gradient:.9g} in float64, {found.run_gradient:.9g} in training's own number format",
            *table(rows, ("moved by", "loss", "change measured", "gradient x move"), left=0),
        ]
    )


def _neuron(found: "Neuron") -> str:
    sizes = [abs(product) for product in found.products.tolist()]
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    largest = max(sizes[order[0]], 1e-30)
    rows: list[tuple[str, ...]] = []
    for i in order[:CONNECTIONS]:
        bar = ("-" if found.products[i] < 0 else "+") * max(1, round(20 * sizes[i] / largest))
        rows.append((f"[{i}]", f"{found.inputs[i]:.6g}", f"{found.weights[i]:.6g}", f"{found.products[i]:.6g}", bar))
    if rest := order[CONNECTIONS:]:
        rows.append((f"{len(rest)} more connections", "", "", f"{found.products[rest].sum():.6g}"))
    rows += [
        ("bias", "", "", f"{found.added:.6g}"),
        ("sum", "", "", f"{found.total:.6g}"),
        ("the model itself", "", "", f"{found.output:.6g}", "(from a probing pass)"),
    ]
    place = f"row {found.row}" if found.prompt is None else f"the prompt {found.prompt!r}"
    narrow = found.products_in != "float32"
    rounded = f"Weights and bias are rounded to {found.products_in} for the products; the sum of these is not rounded."
    return "\n".join(
        [
            f"{found.name} at token {found.token} of {place}: {found.text!r}, step {found.step}",
            *table(rows, ("", "input", "x weight", "= product", ""), last_left=True),
            *([rounded] if narrow else []),
        ]
    )


def _step(found: "StepReport") -> str:
    replayed, probe, seen = found.replayed, found.probe, found.forward()
    batch, norms = replayed.micro_batches[0], found.replayed.norms
    windows, seq = sum(len(micro.inputs) for micro in replayed.micro_batches), batch.inputs.shape[1]
    before = found.text(batch.inputs[found.row, max(0, found.token - 40) : found.token + 1])
    blocks = []
    for layer, norm in enumerate(probe.stream_norms):
        word, share = seen["logit_lens"][layer][0]
        dead = f"{100 * probe.dead[layer - 1]:.1f}%" if layer else ""
        entropy = " ".join(f"{e:.2f}" for e in probe.entropy[layer - 1]) if layer else ""
        blocks.append((str(layer - 1) if layer else "-", f"{norm:.4g}", dead, entropy, repr(word), percent(share)))
    tensors = [
        (
            name,
            f"{weight:.5g}",
            f"{norms['gradient'][name]:.4g}",
            f"{norms['update'][name]:.4g}",
            ratio(norms["update"][name], weight),
        )
        for name, weight in norms["weight"].items()
    ]
    clipped = f"   clipped: x {replayed.clip_factor:.4g}" if replayed.clip_factor != 1 else ""
    gradient, then = single(replayed.gradient_norm), replayed.recorded_gradient_norm
    compared = [
        f"  {kind.equal} of {kind.made}  {kind.what}, "
        + (f"step {kind.first}" if kind.first == kind.last else f"steps {kind.first} to {kind.last}")
        for kind in replayed.comparisons.kinds.values()
    ]
    heads = ("block", "residual stream's norm", "dead units", "attention entropy by head", "logit lens", "")
    return "\n".join(
        [
            f"step {replayed.step} of {replayed.reader.path}",
            "",
            f"1 forward: {windows} windows of {seq} tokens. Row {found.row}, at token {found.token}: {before!r} ->",
            *indented(
                table(
                    [(repr(word), percent(p), "▇" * round(40 * p)) for word, p in seen["probabilities"]], last_left=True
                ),
                4,
            ),
            *indented(table(blocks, heads)),
            f"  (these from a probing pass: logits within {probe.difference:.1g} of training's, attention outputs within "
            f"{probe.attention_difference:.1g})",
            "",
            f"2 loss: the next token was {seen['target']!r}; -ln({seen['target_probability']:.4g}) = "
            f"{float(batch.losses[found.row, found.token]):.4f} for this token",
            f"  mean of the step  {replayed.loss!r}   recorded "
            + ("nothing" if replayed.recorded_loss is None else repr(replayed.recorded_loss)),
            "",
            f"3 backward: norm of the gradient  {gradient}   recorded {'nothing' if then is None else single(then)}{clipped}",
            "",
            f"4 update: norm {replayed.update_norm:.6g}, at learning rate {replayed.learning_rate:.4g}",
            *indented(table(tensors, ("tensor", "weights", "gradient", "update", "update/weight"))),
            "",
            f"the same batch again: {replayed.loss:.4f} to {replayed.again:.4f}; the next batch: {replayed.following:.4f}",
            "",
            "compared, to the bit:",
            *compared,
            *(f"  differs: {difference}" for difference in replayed.comparisons.differs),
            f"exact: {str(replayed.exact).lower()}",
        ]
    )


def _check(found: "Check") -> str:
    return f"{'ok' if found.held else 'FAILED':<8}{found.what}{f': {found.detail}' if found.detail else ''}"


def _health(found: "Health") -> str:
    return judged(found, tuple(LEVELS))


def problems(found: "Health") -> str:
    """Only the errors and warnings of a run's health."""
    return judged(found, ("ill", "watch"))


def judged(found: "Health", levels: Sequence[str]) -> str:
    """The headline, then verdicts of these levels in their order, each with its cause below, and a summary at the end."""
    rows: list[tuple[str, ...]] = []
    first = found.headline
    rest = [v for level in levels for v in found.verdicts if v.level == level and v is not first]
    for verdict in [first, *rest] if first else rest:
        name = str(verdict.blame) if verdict is first and verdict.blame else verdict.name
        rows.append((LEVELS[verdict.level], name, verdict.sentence))
        if verdict.cause:
            look = "" if verdict.step is None else f" Look: vitrine replay {found.run} --step {verdict.step}"
            rows.append(("", "", verdict.cause + look))
    count = Counter(str(verdict.level) for verdict in found.verdicts)
    state = "healthy" if found.healthy else "not healthy" if count["ill"] else "unknown"
    said = f"{count['ill']} errors, {count['watch']} warnings" if count["ill"] or count["watch"] else "no problem found"
    if count["unknown"]:
        said += f"; {count['unknown']} could not be judged"
    return "\n".join([*table(rows, left=3), f"{state}: {count.total() - count['unknown']} verdicts, {said}"])


def _measured(result: Mapping[str, Any]) -> str:
    """How many tokens the last validation loss of a run is of."""
    tokens = result.get("val_tokens", 0)
    return f"{'all ' if result.get('val_whole') else ''}{tokens:,}" if tokens else "-"


def _comparison(found: "Comparison") -> str:
    runs = found.runs
    rows: list[tuple[str, ...]] = [
        ("parameters", *(f"{run.parameters:,}" for run in runs)),
        ("steps made", *(f"{run.made:,} of {run.reader.config.training.steps:,}" for run in runs)),
        ("tokens", *(f"{run.made * run.reader.config.tokens_per_step:,}" for run in runs)),
        ("seconds of training", *(f"{run.seconds[-1]:.1f}" for run in runs)),
        ("training loss, batch of the last step", *(loss(run.train_loss) for run in runs)),
        ("tokens in a sampled validation", *(f"{run.sampled.tokens:,}" if run.sampled else "-" for run in runs)),
        ("validation loss, last sampled", *(loss(run.sampled.loss if run.sampled else None) for run in runs)),
        (
            "validation loss, best sampled",
            *(f"{run.best[1]:.4f} at {run.best[0]:,}" if run.best else "-" for run in runs),
        ),
        ("validation tokens at the end", *(_measured(run.reader.result()) for run in runs)),
        ("validation loss, at the end", *(loss(run.reader.result().get("val_loss")) for run in runs)),
        ("bits per byte, at the end", *(loss(run.reader.result().get("bits_per_byte")) for run in runs)),
    ]
    differ = [(key, *(ending(value) for value in values)) for key, values in found.differs.items()]
    lines = table([*rows, *differ], ("", *(run.name for run in runs)))
    parts = [*lines[: 1 + len(rows)]]
    if found.other_tokens:
        parts.append("Their tokens differ: losses per token do not compare between them, bits per byte do.")
    parts += [
        "",
        "hyperparameters that differ" if differ else "All hyperparameters are the same.",
        *lines[1 + len(rows) :],
    ]
    for run in runs:
        if written := run.reader.samples():
            last = " ".join(written[-1].text.split())[:WRITTEN]
            parts += ["", f"{run.name} writes at step {written[-1].step:,}:", f"  {last}"]
    return "\n".join(parts)


# Keyed by the type's name: importing the types would load torch for every command.
FORMS: dict[str, Callable[[Any], str]] = {
    "TimedPlan": _plan,
    "Evaluation": _evaluation,
    "Exported": _exported,
    "Imported": _imported,
    "Written": _report,
    "Contents": _cache,
    "Inspected": _inspected,
    "Census": _census,
    "TensorView": _tensor,
    "InitialParameters": _initial,
    "ParameterReport": _parameter,
    "GradientCheck": _gradient_check,
    "Neuron": _neuron,
    "StepReport": _step,
    "Check": _check,
    "Health": _health,
    "Comparison": _comparison,
}


def indented(lines: Iterable[str], by: int = 2) -> list[str]:
    """Indent lines."""
    return [" " * by + line for line in lines]


def spread(facts: Mapping[str, Any]) -> list[str]:
    """The distribution of a tensor's numbers: the columns of SPREAD."""
    return [f"{facts[name]:.4g}" for name in ("norm", "mean", "spread", "least", "most")]


def histogram(numbers: "Floats") -> str:
    """Numbers from smallest to largest, as a row of bars; empty where they are equal or not finite."""
    import numpy as np

    if not np.isfinite(numbers).all() or np.ptp(numbers) == 0:
        return ""
    counts, _ = np.histogram(numbers.astype(np.float64), bins=24)
    return "".join(BARS[int(np.ceil(8 * count / counts.max()))] for count in counts)


def single(value: float) -> float:
    """The shortest decimal form that gives the same float32."""
    from vitrine.inspection.parameter import shortest

    return shortest(value)


def ratio(update: float, weight: float) -> str:
    """The ratio of an update to its weights."""
    return f"{update / weight:.2g}" if weight else "-"


def percent(share: float) -> str:
    """12.3%."""
    return f"{100 * share:.1f}%"


def loss(value: float | None) -> str:
    """A loss with four digits; "-" if none was measured."""
    return "-" if value is None else f"{value:.4f}"


def ending(value: Any) -> str:
    """A value for a table cell; a long one is cut to its end, where names differ."""
    said = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return said if len(said) <= CELL else "…" + said[1 - CELL :]


def shape(lengths: Sequence[int]) -> str:
    """The lengths of a shape, such as 64 x 3."""
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
