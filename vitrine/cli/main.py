"""The commands: each parses its options and makes one call into the library. Slow imports wait until a command runs."""

import dataclasses
import gc
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitrine import STARTED_S
from vitrine.cli.output import (
    Command,
    complain,
    end_streams,
    errors_as_sentences,
    give_way,
    make_reporter,
    prepare_streams,
    print_json,
    print_text,
    show,
    someone_is_there,
    visible,
)
from vitrine.errors import ConfigError, DivergedError

if TYPE_CHECKING:
    from vitrine.training.loop import Result
    from vitrine.training.request import Request

app = typer.Typer(
    name="vitrine",
    help="Train a language model from random weights, on your own text, behind glass.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
)

Corpus = Annotated[
    list[str] | None,
    typer.Argument(metavar="CORPUS...", help="files, folders or globs of text, hf:owner/name, or - for standard input"),
]
RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="a run folder")]
# --run-dir is the same: torchrun, before Python 3.12, takes --run for an abbreviation of one of its own options.
NewRun = Annotated[str, typer.Option("--run", "--run-dir", help="the new run's folder; default: a new one below runs/")]
Preset = Annotated[
    str, typer.Option(help="nano, micro, mini, small, medium, sprint, gpt2-124m, nanogpt-laptop, demo, auto")
]
ConfigFile = Annotated[str, typer.Option("--config", help="a TOML file of hyperparameters")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="a hyperparameter, such as model.n_layers=6; may be repeated"),
]
Steps = Annotated[int | None, typer.Option(help="updates in all")]
For = Annotated[str, typer.Option("--for", metavar="TIME", help="about how long to train: 90s, 10m, 2h")]
Target = Annotated[float | None, typer.Option(help="stop at this validation loss, in nats per token")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]
NoBrowser = Annotated[bool, typer.Option("--no-browser", help="print the page's address, and do not open it")]
Row = Annotated[int, typer.Option(help="a row of the step's first micro-batch")]
Step = Annotated[str, typer.Option(help="last, best (by validation loss), or a step that has a keyframe")]


@app.command()
def demo(
    corpus: Annotated[
        str, typer.Option(help="python (the text of Python's own documentation) or shakespeare (downloaded)")
    ] = "python",
    run: NewRun = "",
    for_time: For = "60s",
    studio: Annotated[
        bool | None,
        typer.Option("--studio/--no-studio", help="open the studio while it trains; default: in a terminal"),
    ] = None,
    no_browser: NoBrowser = False,
    as_json: Json = False,
) -> None:
    """Train a small GPT-2 for a minute, and see what it writes."""
    from vitrine.studio.companion import Companion

    wanted = someone_is_there() if studio is None else studio
    with Companion(wanted, not no_browser) as page, errors_as_sentences():
        from vitrine.cli import demo as demonstration
        from vitrine.config import parse_seconds

        with make_reporter(page.open) as reporter:
            result = demonstration.demo(corpus, run, parse_seconds(for_time), reporter)
        if result.signal not in (signal.SIGTERM, signal.SIGHUP):
            page.keep()
        if result.stopped == "interrupted" or as_json:
            _report(result, as_json)
        else:
            for text in demonstration.show(result):
                print_text(visible(text), end="")


@app.command()
def train(
    corpus: Corpus = None,
    run: NewRun = "",
    preset: Preset = "",
    config: ConfigFile = "",
    settings: Settings = None,
    steps: Steps = None,
    for_time: For = "",
    target_loss: Target = None,
    parent: Annotated[
        str, typer.Option("--from", metavar="RUN@STEP", help="start from the parameters of another run")
    ] = "",
    studio: Annotated[bool, typer.Option("--studio", help="open the studio while it trains, until Ctrl-C")] = False,
    no_browser: NoBrowser = False,
    as_json: Json = False,
) -> None:
    """Train a new model from random weights, on your own text."""
    from vitrine.studio.companion import Companion

    with Companion(studio, not no_browser) as page, errors_as_sentences():
        request = _request(corpus, run, preset, config, settings, steps, for_time, target_loss, parent)
        from vitrine.training import create

        try:
            with make_reporter(page.open) as reporter:
                result = create.train(request, reporter, STARTED_S)
        except DivergedError:
            page.keep()  # so that the page can show what happened
            raise
        if result.signal not in (signal.SIGTERM, signal.SIGHUP):
            page.keep()
        _report(result, as_json)


@app.command()
def resume(run: RunFolder, as_json: Json = False) -> None:
    """Resume a run that was interrupted, bit for bit as if it had never stopped."""
    with errors_as_sentences():
        from vitrine.training import resume as resuming

        with make_reporter() as reporter:
            result = resuming.resume(run, reporter, STARTED_S)
        _report(result, as_json)


@app.command()
def plan(
    corpus: Corpus = None,
    preset: Preset = "",
    config: ConfigFile = "",
    settings: Settings = None,
    steps: Steps = None,
    for_time: For = "",
    as_json: Json = False,
) -> None:
    """Before training: how many parameters, how much memory, how long."""
    with errors_as_sentences():
        request = _request(corpus, "", preset, config, settings, steps, for_time, None, "")
        from vitrine.training import plan

        with make_reporter() as reporter:
            planned = plan.plan(request, reporter)
        show(planned, as_json)


@app.command()
def generate(
    run: RunFolder,
    prompt: Annotated[str, typer.Option(help="the text to continue")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="tokens to write at most")] = 200,
    temperature: Annotated[
        float | None, typer.Option(help="below 1: more predictable; above 1: more varied; 0: only the likeliest token")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="keep the k likeliest tokens; 0: all")] = None,
    top_p: Annotated[float | None, typer.Option(help="keep the likeliest that together have this probability")] = None,
    min_p: Annotated[float | None, typer.Option(help="keep tokens this likely, relative to the likeliest")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="above 1: fewer repetitions")] = None,
    seed: Annotated[int, typer.Option(help="of the sampling: the same seed gives the same text")] = 1,
    step: Step = "last",
    as_json: Json = False,
) -> None:
    """Continue a prompt with text of the model."""
    with errors_as_sentences():
        from vitrine.run import Run

        unsaid = prompt  # printed with the first text of the model: an error then comes before it

        def say(text: str) -> None:
            nonlocal unsaid
            print_text(visible(unsaid + text), end="")
            unsaid = ""

        written = Run(run).generate(
            prompt,
            max_new_tokens,
            seed,
            step,
            on_text=None if as_json else say,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
        )
        if as_json:
            print_json(vars(written) | {"tokens": len(written.token_ids)})
        else:
            print_text(visible(unsaid))


@app.command()
def evaluate(
    run: RunFolder,
    corpus: Corpus = None,
    step: Step = "last",
    as_json: Json = False,
) -> None:
    """Measure the loss on the whole validation split, or on other text."""
    with errors_as_sentences():
        from vitrine.run import Run

        show(Run(run).evaluate(*(corpus or ()), step=step), as_json)


@app.command()
def replay(
    run: RunFolder,
    step: Annotated[int | None, typer.Option(help="the step to replay; default: the last one made")] = None,
    row: Row = 0,
    token: Annotated[int, typer.Option(help="whose prediction is shown, by its place in the row; -1: the last")] = -1,
    save: Annotated[str, typer.Option(help="write every tensor of the step into this .safetensors file")] = "",
    prove: Annotated[bool, typer.Option("--prove", help="run on to the next keyframe, and compare it whole")] = False,
    as_json: Json = False,
) -> None:
    """Replay a past step on the bits that training had: forward, loss, backward, update."""
    with errors_as_sentences():
        give_way(run)
        from vitrine.inspection.replay import Replayer
        from vitrine.inspection.step_report import report_step
        from vitrine.runs.reader import RunReader

        reader = RunReader(run)
        replayer = Replayer(reader, complain)
        replayed = replayer.replay(max(0, reader.steps_made() - 1) if step is None else step)
        report = report_step(replayed, row, token)
        if save:
            replayed.save(Path(save))
        if prove:
            replayer.prove()
        show(report, as_json)


@app.command()
def inspect(
    run: RunFolder,
    what: Annotated[
        str, typer.Argument(metavar="[NAME]", help="a tensor, a parameter NAME[3,7], or a neuron LAYER[12]")
    ] = "",
    step: Annotated[
        int | None, typer.Option(help="the step to look at; default: the last one made; of a prompt the end of the run")
    ] = None,
    nudge: Annotated[
        list[float] | None, typer.Option(help="move the parameter by this much, and measure the loss; may be repeated")
    ] = None,
    row: Row = 0,
    token: Annotated[
        int | None, typer.Option(help="for a neuron: which token of the row; default: the first, of a prompt the last")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="for a neuron: a text that it reads instead of the step's batch")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a parameter and its history, a neuron, a tensor, or all tensors."""
    with errors_as_sentences():
        give_way(run)
        from vitrine.inspection.views import inspect as look
        from vitrine.runs.reader import RunReader

        show(look(RunReader(run), what, step, nudge or (), row, token, complain, prompt), as_json)


@app.command()
def health(run: RunFolder, as_json: Json = False) -> None:
    """Look for problems in a run: verdicts with their numbers, the usual cause, and the step to look at."""
    with errors_as_sentences():
        give_way(run)
        from vitrine.inspection.health import examine
        from vitrine.runs.reader import RunReader

        show(examine(RunReader(run)), as_json)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="run folders, 2 to 8")],
    as_json: Json = False,
) -> None:
    """Compare runs: the hyperparameters that differ, and their losses."""
    with errors_as_sentences():
        from vitrine.inspection.compare_runs import compare as side_by_side
        from vitrine.runs.reader import RunReader

        show(side_by_side([(run, RunReader(run)) for run in runs]), as_json)


@app.command()
def verify(
    run: RunFolder,
    count: Annotated[int, typer.Option(help="steps to replay, and parameters to differentiate")] = 3,
    seed: Annotated[int, typer.Option(help="of the random choice of both")] = 1,
    as_json: Json = False,
) -> None:
    """Check a run: keyframes, random steps bit for bit, gradients against finite differences."""
    with errors_as_sentences():
        if not 1 <= count <= 10_000:
            raise ConfigError(f"--count must be from 1 to 10,000: got {count}. Try --count 3.")
        give_way(run)
        from vitrine.cli.render import render
        from vitrine.inspection.verify import verify as check
        from vitrine.runs.reader import RunReader

        checks = []
        for result in check(RunReader(run), count, seed, complain):
            checks.append(result)
            if not as_json:
                print_text(render(result))
        held = all(result.held for result in checks)
        if as_json:
            print_json({"held": held, "checks": checks})
        if not held:
            raise typer.Exit(1)


@app.command()
def studio(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUNS...]", help="run folders, or folders of them; default: runs")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="on this machine; 0: the first that is free")] = 0,
    no_browser: NoBrowser = False,
) -> None:
    """Open the page that shows runs, replays their steps and controls their training. It listens only on this machine."""
    with errors_as_sentences():
        from vitrine.studio.command import serve

        serve(runs or ["runs"], port, not no_browser, print_text)


@app.command()
def report(
    run: RunFolder,
    out: Annotated[str, typer.Option(metavar="FILE", help="the file; default: the run's name with .html")] = "",
    steps: Annotated[str, typer.Option(help="steps to keep in full, such as birth,300,last")] = "",
    cell: Annotated[str, typer.Option(metavar="NAME[3,7]", help="the parameter whose history is included")] = "",
    force: Annotated[bool, typer.Option("--force", help="replace a file that exists already")] = False,
    as_json: Json = False,
) -> None:
    """Write the run as one HTML file, to look at and to share. It contains parts of your text."""
    with errors_as_sentences():
        from vitrine.studio.report.command import write_report

        show(write_report(run, out, steps, cell, force, complain), as_json)


@app.command()
def serve(
    run: RunFolder,
    step: Step = "last",
    host: Annotated[str, typer.Option(help="the address to listen on; default: only this machine")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free")] = 8000,
    api_key: Annotated[
        str, typer.Option(envvar="VITRINE_API_KEY", help="ask every client for this key", show_default=False)
    ] = "",
    name: Annotated[str, typer.Option(help="of the model; default: the run folder's")] = "",
    chat_template: Annotated[str, typer.Option(help="a Jinja file; default: the run's own, if it has one")] = "",
    parallel: Annotated[int, typer.Option(help="texts decoded together")] = 64,
    queue: Annotated[int, typer.Option(help="further texts that may wait")] = 256,
) -> None:
    """Serve the model to clients of OpenAI's API: completions, chats, streams, log-probabilities."""
    with errors_as_sentences():
        from vitrine.serving.command import Options
        from vitrine.serving.command import serve as answer

        answer(Options(run, step, host, port, api_key, name, chat_template, parallel, queue), print_text, complain)


@app.command()
def export(
    run: RunFolder,
    target: Annotated[str, typer.Argument(metavar="DIR|FILE", help="the new folder; for gguf, the new file")],
    step: Step = "last",
    target_format: Annotated[str, typer.Option("--format", help="hf: a Hugging Face folder; gguf: one file")] = "hf",
    dtype: Annotated[str, typer.Option(help="of a gguf's matrices: float32, float16 or bfloat16")] = "float32",
    as_json: Json = False,
) -> None:
    """Write the model for other tools: a Hugging Face folder, or a GGUF file for llama.cpp."""
    with errors_as_sentences():
        from vitrine.run import Run

        show(Run(run).export(target, step, target_format, dtype), as_json)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(metavar="DIR", help="a Hugging Face folder, or hf:owner/name")],
    run: NewRun = "",
    as_json: Json = False,
) -> None:
    """Make a run from a GPT-2, Llama or Qwen3 folder, to look at, to use, and to train further."""
    with errors_as_sentences():
        from vitrine.exchange.hf_import import import_run

        show(import_run(source, run), as_json)


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="remove all of it except pasted texts")] = False,
    as_json: Json = False,
) -> None:
    """Show what the cache contains (token files, scans, texts), where it is, and its size."""
    with errors_as_sentences():
        from vitrine.text.cache import contents

        show(contents(clear), as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Look at this machine: what training will use, how fast it is, whether it computes the same bits twice."""
    with errors_as_sentences():
        from vitrine.cli import doctor as examination
        from vitrine.cli.render import facts

        findings = examination.examine()
        if as_json:
            print_json(findings)
        else:
            print_text("\n".join(facts(findings.items())))
        if not findings["repeats_to_the_bit"]:
            raise typer.Exit(1)


for registered in app.registered_commands:
    registered.cls = Command


def main() -> None:
    """The entry point of the `vitrine` command."""
    prepare_streams()
    # Until the trainer has something to save, a signal ends the command as an error does: half-written files are removed.
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(ending, lambda number, frame: sys.exit(128 + number))
    gc.set_threshold(100_000)  # collecting while torch is imported finds nothing, and takes a sixth of the start
    try:
        app()
    except SystemExit as end:
        status = end_streams(end.code if isinstance(end.code, int) else 0)
        if "torch" not in sys.modules:
            raise SystemExit(status) from None
        # Python's clean-up of torch takes a third of a second; and gloo's threads, which outlive their group, sometimes
        # abort the process during it.
        os._exit(status)


def _request(
    corpus: list[str] | None,
    run: str,
    preset: str,
    config: str,
    settings: list[str] | None,
    steps: int | None,
    for_time: str,
    target_loss: float | None,
    parent: str,
) -> "Request":
    from vitrine.config import parse_seconds, parse_settings
    from vitrine.training.request import Request

    if steps is not None and steps < 1:
        raise ConfigError(f"training.steps must be at least 1: got {steps}. Try --steps 500.")
    if target_loss is not None and not target_loss > 0:
        raise ConfigError(f"training.target_loss must be greater than 0: got {target_loss}. Try --target-loss 2.0.")
    chosen, for_s = parse_settings(settings or []), parse_seconds(for_time) if for_time else 0.0
    return Request(tuple(corpus or ()), run, preset, config, chosen, steps or 0, for_s, target_loss or 0.0, parent)


def _report(result: "Result", as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(result))
    elif os.environ.get("RANK", "0") == "0":
        from vitrine.cli.summary import conclude

        for text in conclude(result):
            print_text(visible(text), end="")
    _exit_after(result)


def _exit_after(result: "Result") -> None:
    if result.stopped == "interrupted":
        raise typer.Exit(128 + (result.signal or 2))
