"""How the commands speak: results on standard output, the rest on standard error, and errors as one sentence."""

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import typer
from typer.core import TyperCommand

from vitrine.errors import ConfigError, DivergedError, VitrineError

if TYPE_CHECKING:
    from vitrine.progress import OnStart, TerminalReporter


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
        # Whoever read our output has gone; nothing more can be said to them.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None


class Command(TyperCommand):
    """A command that takes '' for a mistake, such as a variable that is not set; but a prompt may be empty."""

    def invoke(self, ctx: Any) -> Any:
        """Run it, if no argument is empty."""
        with errors_as_sentences():
            for parameter in self.params:
                value, source = ctx.params.get(parameter.name), ctx.get_parameter_source(parameter.name)
                empty = value == "" or (isinstance(value, list | tuple) and "" in value)
                if empty and source.name == "COMMANDLINE" and parameter.name != "prompt":
                    name = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar
                    raise ConfigError(f"{name} must not be empty: got ''. Give it a value ({vars(parameter)['help']}).")
        return super().invoke(ctx)


class Showable(Protocol):
    """What a command found."""

    def to_json(self) -> dict[str, Any]:
        """For --json."""

    def to_text(self) -> str:
        """For people."""


def show(found: Showable, as_json: bool) -> None:
    """A finding, as JSON or as text."""
    if as_json:
        print_json(found.to_json())
    else:
        print_text(found.to_text())


def give_way(run: str) -> None:
    """Beside a training that goes on: take the processor only when it is free, and never wait by spinning.

    It must come before torch is imported, whose threads read this when they start.
    """
    from vitrine.runs.reader import is_training

    if is_training(run):
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.nice(19)


def complain(text: str) -> None:
    """A line on standard error."""
    sys.stderr.write(text + "\n")


def make_reporter(on_start: "OnStart | None" = None) -> "TerminalReporter":
    """Who shows the progress of a training. on_start: see `TerminalReporter`."""
    from vitrine.progress import TerminalReporter

    return TerminalReporter(on_start=on_start)


def someone_is_there() -> bool:
    """Whether a person sits at this terminal, who can press Ctrl-C."""
    return sys.stdin.isatty() and sys.stderr.isatty() and not os.environ.get("CI")


def print_text(text: str = "", end: str = "\n") -> None:
    """On standard output, at once."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def print_json(value: dict[str, Any]) -> None:
    """One JSON object, without NaN: a number that is not finite becomes null."""
    if os.environ.get("RANK", "0") == "0":
        print_text(json.dumps(_finite(value), ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value
