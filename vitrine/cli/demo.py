"""`vitrine demo`: a small GPT-2, trained for about a minute on the text of Python's own documentation."""

from collections.abc import Iterator

from vitrine.cli.render import problems
from vitrine.cli.summary import outcome
from vitrine.errors import CorpusError
from vitrine.inspection.health import examine
from vitrine.recording.reporter import Reporter
from vitrine.run import Run
from vitrine.text.builtin import python_topics, shakespeare
from vitrine.text.tokenizer import unknown_characters
from vitrine.training.create import train
from vitrine.training.loop import Result
from vitrine.training.request import Request

TEMPERATURES = (0.2, 0.8, 1.2)


def demo(corpus: str, run: str, for_s: float, reporter: Reporter) -> Result:
    """Train on one of the demo's texts for about `for_s` seconds.

    Args:
        corpus: "python" (the language's own documentation) or "shakespeare" (downloaded once, digest checked).
    """
    texts = {"python": python_topics, "shakespeare": shakespeare}
    if corpus not in texts:
        raise CorpusError(
            f"The demo knows the corpora python and shakespeare: got {corpus!r}. For your own text: "
            f"vitrine train {corpus}"
        )
    return train(Request((str(texts[corpus]()),), run, "demo", for_s=for_s), reporter)


def show(result: Result) -> Iterator[str]:
    """After the demo: what the model writes at low, medium and high temperature, and what to try next."""
    run = Run(result.run)
    prompt = next((start for start in ("The ", "A ", "\n") if not unknown_characters(run.tokenizer, start)), "")
    for temperature in TEMPERATURES:
        text = run.generate(prompt, 160, seed=1, temperature=temperature).text
        yield f"\n--- temperature {temperature} ---\n{text.strip()}\n"
    yield (
        f"\n{outcome(result)}\n{problems(examine(run))}\n\nTry next:\n"
        f"  vitrine studio {result.run}                        the run in the browser\n"
        f"  vitrine inspect {result.run}                       every tensor's norms\n"
        f"  vitrine inspect {result.run} 'embedding.weight[3,7]'   one parameter's value, update and history\n"
        f"  vitrine replay {result.run} --step 10              one step, replayed: forward, loss, backward, update\n"
        f"  vitrine generate {result.run} --prompt 'The ' --temperature 0.5\n"
        f"  vitrine train YOUR_TEXT.txt --for 2m\n"
    )
