"""The first command: a small GPT-2, trained for about a minute on a text that is always there."""

from collections.abc import Iterator

from vitrine.errors import CorpusError
from vitrine.inspection.health import examine
from vitrine.recording.reporter import Reporter
from vitrine.run import Run
from vitrine.text.builtin import python_topics, shakespeare
from vitrine.training import launch
from vitrine.training.loop import Result

TEMPERATURES = (0.2, 0.8, 1.2)


def demo(corpus: str, run: str, for_s: float, reporter: Reporter) -> Result:
    """Train on one of the demo's texts for about so many seconds.

    Args:
        corpus: "python" (the language's own documentation) or "shakespeare" (downloaded once, digest checked).
    """
    texts = {"python": python_topics, "shakespeare": shakespeare}
    if corpus not in texts:
        raise CorpusError(
            f"The demo knows the corpora python and shakespeare: got {corpus!r}. For your own text: "
            f"vitrine train {corpus}"
        )
    return launch.train(launch.Request((str(texts[corpus]()),), run, "demo", for_s=for_s), reporter)


def show(result: Result) -> Iterator[str]:
    """After the demo: what the model writes, from safe to bold, and what to try next."""
    run = Run(result.run)
    prompt = next((start for start in ("The ", "A ", "\n") if not _unknown(run, start)), "")
    for temperature in TEMPERATURES:
        text = run.generate(prompt, 160, seed=1, temperature=temperature).text
        yield f"\n--- temperature {temperature} ---\n{text.strip()}\n"
    yield (
        f"\n{_summary(result)}\n{_health(run)}\n\nTry next:\n"
        f"  vitrine studio {result.run}                        all of it on a page in the browser\n"
        f"  vitrine inspect {result.run}                       every tensor of parameters\n"
        f"  vitrine inspect {result.run} 'embedding.weight[3,7]'   the biography of one parameter\n"
        f"  vitrine replay {result.run} --step 10              a step again: forward, loss, backward, update\n"
        f"  vitrine generate {result.run} --prompt 'The ' --temperature 0.5\n"
        f"  vitrine train YOUR_TEXT.txt --for 2m\n"
    )


def conclude(result: Result) -> Iterator[str]:
    """After a training: a sample, the result, and what to do next."""
    if result.stopped == "interrupted":
        yield f"Interrupted and saved at step {result.steps}. Go on: vitrine resume {result.run}\n"
        return
    run = Run(result.run)
    text = run.generate("", 120, seed=1).text
    yield f"\n--- it writes (temperature {run.config.sampling.temperature:g}) ---\n{text.strip()}\n\n{_summary(result)}\n"
    best = run.best_step()
    if best is not None and best < result.steps:
        yield f"The validation loss was lowest at step {best}, before the end: --step best goes back there.\n"
    yield f"{_health(run)}\nLet it write: vitrine generate {result.run} --prompt TEXT\n"


def _summary(result: Result) -> str:
    losses = f"training loss {result.train_loss:.3f}" if result.train_loss is not None else "no step was made"
    if result.val_loss is not None:
        losses += f", validation loss {result.val_loss:.4f} nats a token"
    if result.bits_per_byte is not None:
        losses += f" ({result.bits_per_byte:.3f} bits a byte)"
    if result.val_loss is not None and not result.val_whole:
        losses += f", over {result.val_tokens:,} of {result.val_split_tokens:,} validation tokens"
    return (
        f"{result.steps:,} steps in {result.duration_s:.0f} s: {losses}.\n"
        f"{result.parameters:,} parameters, saved in {result.run}"
    )


def _health(run: Run) -> str:
    """What health finds, without what is well."""
    return examine(run).summary()


def _unknown(run: Run, text: str) -> bool:
    from vitrine.text.tokenizer import unknown_characters

    return bool(unknown_characters(run.tokenizer, text))
