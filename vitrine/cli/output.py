"""Output of the commands: results on standard output, all else on standard error, errors as one sentence."""

import codecs
import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from vitrine._json import dumps
from vitrine.errors import ConfigError, DivergedError, RunError, VitrineError

if TYPE_CHECKING:
    from vitrine.cli.progress import OnStart, TerminalReporter


@contextlib.contextmanager
def errors_as_sentences() -> Iterator[None]:
    """One sentence on standard error instead of a traceback, and the exit status."""
    try:
        yield
    except VitrineError as error:
        complain(str(error))
        raise typer.Exit(2) from None
    except DivergedError as error:
        complain(str(error))
        raise typer.Exit(1) from None
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or re.search("allocate memory|out of memory", str(error))):
            raise
        complain(
            "There is not enough memory. A smaller training.batch_size with more training.accumulation needs "
            "less, and so does a shorter model.context; `vitrine plan` adds it up."
        )
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        raise typer.Exit(READER_GONE) from None


def prepare_streams() -> None:
    """Prepare the standard streams: they may be closed, lose their reader, or have a narrow encoding.

    What cannot be encoded is escaped. What cannot be written to standard error is dropped: results do not go there.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # closed streams: no other file may get their numbers
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - open until the process ends
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    encoding = sys.stderr.encoding if sys.stderr else "utf-8"
    unheard = io.BufferedWriter(_Unheard(2, "wb", closefd=False))
    sys.stderr = io.TextIOWrapper(unheard, encoding, "backslashreplace", line_buffering=True, write_through=True)


def end_streams(status: int) -> int:
    """Flush standard output; returns `status`, or READER_GONE if the reader has closed it."""
    try:
        with errors_as_sentences():
            print_text(end="")
    except typer.Exit as failed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python tries once more when it ends
        return status or failed.exit_code
    return status


class _Unheard(io.FileIO):
    """A file whose write errors are ignored."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


PICTURES = {
    **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"},
    0x7F: "␡",
    **{code: f"\\x{code:02x}" for code in range(0x80, 0xA0)},
}


class Command(TyperCommand):
    """A command that refuses '' as an argument (often a variable that is not set), except as a prompt."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command, unless an argument is empty."""
        with errors_as_sentences():
            for parameter in self.params:
                value, source = ctx.params.get(parameter.name), ctx.get_parameter_source(parameter.name)
                empty = value == "" or (isinstance(value, list | tuple) and "" in value)
                if empty and source.name == "COMMANDLINE" and parameter.name != "prompt":
                    name = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar
                    raise ConfigError(f"{name} must not be empty: got ''. Give it a value ({vars(parameter)['help']}).")
        return super().invoke(ctx)


def show(result: Any, as_json: bool) -> None:
    """Print a result as JSON or as text."""
    if as_json:
        print_json(result)
    else:
        from vitrine.cli.render import render

        print_text(render(result))


def give_way(run: str) -> None:
    """While a run is being trained: lower this process's priority, and let its threads sleep while they wait.

    Call it before torch is imported: its threads read this when they start.
    """
    from vitrine.runs.reader import is_training

    if is_training(run):
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.nice(19)


READER_GONE = 141  # the exit status after a closed pipe, as in a shell


def complain(text: str) -> None:
    """Print a line on standard error."""
    sys.stderr.write(text + "\n")


def make_reporter(on_start: "OnStart | None" = None) -> "TerminalReporter":
    """The reporter that shows the progress of a training. on_start: see `TerminalReporter`."""
    from vitrine.cli.progress import TerminalReporter

    return TerminalReporter(on_start=on_start)


def someone_is_there() -> bool:
    """Whether this is an interactive terminal, where a person can press Ctrl-C."""
    return sys.stdin.isatty() and sys.stderr.isatty() and not os.environ.get("CI")


def print_text(text: str = "", end: str = "\n") -> None:
    """Print on standard output, without buffering."""
    try:
        sys.stdout.write(text + end)
        sys.stdout.flush()
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EIO):  # a closed pipe, or a closed terminal
            raise BrokenPipeError from None
        raise RunError(f"Standard output cannot be written: {error.strerror}.") from None


def visible(text: str) -> str:
    """Text of a model with control characters made visible (ESC as ␛) on a terminal; unchanged for a pipe."""
    return text.translate(PICTURES) if sys.stdout.isatty() else text


def print_json(value: Any) -> None:
    """Print one JSON object; a number that is not finite becomes null."""
    if os.environ.get("RANK", "0") == "0":
        ascii_only = codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8"
        print_text(dumps(value, ensure_ascii=ascii_only))
