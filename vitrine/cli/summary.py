"""The summary that a command prints after a training."""

from collections.abc import Iterator

from vitrine.cli.render import problems
from vitrine.inspection.health import examine
from vitrine.run import Run
from vitrine.training.loop import Result


def conclude(result: Result) -> Iterator[str]:
    """After a training: a sample, the result, and what to do next."""
    if result.stopped == "interrupted":
        yield f"Interrupted and saved at step {result.steps}. Continue: vitrine resume {result.run}\n"
        return
    run = Run(result.run)
    text = run.generate("", 120, seed=1).text
    yield f"\n--- it writes (temperature {run.config.sampling.temperature:g}) ---\n{text.strip()}\n\n{outcome(result)}\n"
    best = run.best_step()
    if best is not None and best < result.steps:
        yield f"The validation loss was lowest at step {best}, before the end: --step best uses it.\n"
    yield f"{problems(examine(run))}\nGenerate text: vitrine generate {result.run} --prompt TEXT\n"


def outcome(result: Result) -> str:
    """Steps, losses, and where the run is."""
    losses = (
        f"training loss {result.train_loss:.4f} (the batch of the last step)"
        if result.train_loss is not None
        else "no step was made"
    )
    if result.val_loss is not None:
        losses += f", validation loss {result.val_loss:.4f} nats per token"
        if result.bits_per_byte is not None:
            losses += f", {result.bits_per_byte:.3f} bits per byte"
        part = "all" if result.val_whole else f"{result.val_tokens:,} of"
        losses += f" ({part} {result.val_split_tokens:,} validation tokens)"
    return (
        f"{result.steps:,} steps in {result.duration_s:.0f} s: {losses}.\n"
        f"{result.parameters:,} parameters, saved in {result.run}"
    )
