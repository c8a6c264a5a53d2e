"""One logger, in a process of its own: `python -m vitrine.recording.logger_process NAME` reads a run's curves from standard input.

The first line describes the run; each further line has a step with numbers, or with text that the model wrote. A separate
process keeps what a logging package does (prints, signal handlers, an exit) away from the training. Needs no torch.
"""

import contextlib
import html
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

PROJECT = "vitrine"


class Logger(Protocol):
    """The interface of a logger: receives curves and texts."""

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log one point of each of several curves."""

    def text(self, step: int, text: str) -> None:
        """Log a text that the model wrote."""

    def close(self) -> None:
        """Finish: no more points follow."""


class TensorBoard:
    """Event files in the run's folder: `tensorboard --logdir RUN`."""

    def __init__(self, path: Path, hyperparameters: Mapping[str, Any]) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.writer = EventFileWriter(str(path / "tensorboard"))
        lines = [f"    {name} = {value}" for name, value in hyperparameters.items()]
        self._text(0, "hyperparameters", "\n".join(lines))

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write each number as a scalar."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=number) for name, number in numbers.items()]
        self._write(step, Summary(value=values))

    def text(self, step: int, text: str) -> None:
        """Indented as code, because TensorBoard renders text as Markdown."""
        self._text(step, "sample", "\n".join(f"    {line}" for line in text.splitlines()))

    def close(self) -> None:
        """Finish the file."""
        self.writer.close()

    def _text(self, step: int, tag: str, text: str) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto

        kind = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode()])
        self._write(step, Summary(value=[Summary.Value(tag=tag, metadata=kind, tensor=tensor)]))

    def _write(self, step: int, summary: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self.writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))


class WandB:
    """A run of Weights & Biases; without an API key it is kept in the run's folder, to be sent by `wandb sync`."""

    def __init__(self, path: Path, hyperparameters: Mapping[str, Any]) -> None:
        import wandb

        self.html = wandb.Html
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=path.name,
            dir=str(path),
            config=dict(hyperparameters),
            settings=wandb.Settings(console="off", silent=True),
        )

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log one row of the run's history."""
        self.run.log(dict(numbers), step=step)

    def text(self, step: int, text: str) -> None:
        """Log the text verbatim."""
        self.run.log({"sample": self.html(f"<pre>{html.escape(text)}</pre>", inject=False)}, step=step)

    def close(self) -> None:
        """Send the remaining data."""
        self.run.finish()


class Trackio:
    """A run in Trackio's own folder: `trackio show --project vitrine`."""

    def __init__(self, path: Path, hyperparameters: Mapping[str, Any]) -> None:
        import trackio

        self.trackio = trackio
        trackio.init(project=PROJECT, name=path.name, config=dict(hyperparameters), embed=False, auto_log_cpu=False)

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log one row of the run's history."""
        self.trackio.log(dict(numbers), step=step)

    def text(self, step: int, text: str) -> None:
        """Log the text verbatim."""
        fenced = "\n".join(f"    {line}" for line in text.splitlines())
        self.trackio.log({"sample": self.trackio.Markdown(fenced)}, step=step)

    def close(self) -> None:
        """Send the remaining data."""
        self.trackio.finish()


LOGGERS: dict[str, Callable[[Path, Mapping[str, Any]], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}


def main() -> None:
    """Pass standard input on to the logger, until it ends."""
    os.nice(10)  # give the training priority
    lines = iter(sys.stdin.buffer)
    about = json.loads(next(lines))
    with contextlib.redirect_stdout(sys.stderr):
        logger = LOGGERS[sys.argv[1]](Path(about["path"]), about["hyperparameters"])
        for line in lines:
            point = json.loads(line)
            if "text" in point:
                logger.text(point["step"], point["text"])
            else:
                logger.numbers(point["step"], point["numbers"])
        logger.close()


if __name__ == "__main__":
    main()
