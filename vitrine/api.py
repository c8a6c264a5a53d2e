"""The commands as functions: `vitrine.train`, `vitrine.resume`, `vitrine.open_run`, `vitrine.plan`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrine.config import Settings, check_name
from vitrine.model.inventory import Plan
from vitrine.recording.reporter import Reporter
from vitrine.run import Run
from vitrine.training import create
from vitrine.training import resume as resuming
from vitrine.training.checks import plan_here
from vitrine.training.request import Request, prepare


def train(
    *corpus: str | Path,
    run: str | Path = "",
    preset: str = "",
    config: str | Path = "",
    settings: Mapping[str, Any] | None = None,
    steps: int = 0,
    for_s: float = 0.0,
    target_loss: float = 0.0,
    parent: str = "",
    reporter: Reporter | None = None,
) -> Run:
    """Train a new run to its end.

    Args:
        corpus: files, folders, globs, or "hf:owner/name".
        run: the new run's folder; empty: a new one below runs/.
        preset: nano, micro, mini, small, medium, gpt2-124m, nanogpt-laptop, demo; empty: auto.
        config: a TOML file of hyperparameters.
        settings: hyperparameters by name, such as {"model.n_layers": 6}.
        steps, for_s, target_loss: when to stop: updates, seconds, validation loss in nats per token; 0: no limit.
        parent: "RUN@STEP" whose parameters the run starts from.

    Raises:
        VitrineError: the request is wrong; no run folder is left behind.
        DivergedError: loss or gradients became non-finite; the run keeps its last good keyframe.
    """
    request = _request(
        corpus,
        settings,
        run=str(run),
        preset=preset,
        config_file=str(config),
        steps=steps,
        for_s=for_s,
        target_loss=target_loss,
        parent=parent,
    )
    return Run(create.train(request, reporter).run)


def resume(run: str | Path, reporter: Reporter | None = None) -> Run:
    """Resume an interrupted run, bit for bit as if it had never stopped."""
    return Run(resuming.resume(run, reporter).run)


def open_run(run: str | Path) -> Run:
    """Open a run folder: history, text samples and model."""
    return Run(run)


def plan(
    *corpus: str | Path, preset: str = "", config: str | Path = "", settings: Mapping[str, Any] | None = None
) -> Plan:
    """The tensors, FLOPs and memory that a choice of hyperparameters gives."""
    request = _request(corpus, settings, preset=preset, config_file=str(config))
    return plan_here(prepare(request).config)


def _request(corpus: tuple[str | Path, ...], settings: Mapping[str, Any] | None, **asked: Any) -> Request:
    nested: Settings = {}
    for name, value in (settings or {}).items():
        section, key = check_name(name)
        nested.setdefault(section, {})[key] = value
    return Request(tuple(map(str, corpus)), settings=nested, **asked)
