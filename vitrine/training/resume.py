"""Resumes the training of an interrupted run."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrine.errors import RunError
from vitrine.recording.reporter import Reporter
from vitrine.runs.reader import CONFIG, HISTORY, RunReader
from vitrine.training.checks import check_loggers, check_processes
from vitrine.training.create import opened
from vitrine.training.device import check_device, differences, fingerprint
from vitrine.training.distributed import Processes, joined
from vitrine.training.loop import Result, Trainer
from vitrine.training.tokens import check_corpus, open_tokens, tell_what_was_read


def resume(run: str | Path, reporter: Reporter | None = None, started_s: float = 0.0) -> Result:
    """Resume a run from its newest sound keyframe, bit for bit as if it had never stopped."""
    started_s = started_s or time.monotonic()
    reporter = reporter or Reporter()
    reader = RunReader(run)
    ended = reader.result()
    if ended.get("stopped") in ("steps", "target", "early"):
        reporter.note(
            f"{run} has ended already, at step {ended['steps']}. To train it further: "
            f"vitrine train --from {run}@{ended['steps']}."
        )
        return Result(**(ended | {"run": str(run)}))  # the folder may have been moved
    if damage := reader.damage():
        raise RunError(damage)
    _check_settings(reader)
    check_loggers(reader.config)
    with joined(check_device(reader.config.machine.device).type) as processes:
        check_processes(reader.config, processes.size)
        with opened(reader.path, reader.config, processes, reporter) as reporter:
            for first, last, keyframe in reader.missing_steps():
                reporter.note(missing_text(first, last, keyframe))
            check_corpus(reader, reporter)
            tokens = open_tokens(reader)
            tell_what_was_read(tokens, reader.config, reporter)
            if processes.first:
                _compare_fingerprints(reader, processes, reporter)
            trainer = Trainer(reader.path, reader.config, tokens, processes, reporter, started_s)
            trainer.resume()
            reporter.started(reader.config, reader.path)
            return trainer.run()


def _check_settings(reader: RunReader) -> None:
    """Refuse to resume if the hyperparameters were changed since the run began."""
    if changed := reader.changed_settings():
        raise RunError(
            f"{reader.path / CONFIG} is not as it was when the run began ({changed_text(changed)}). Put it back, or start "
            f"a new run with vitrine train --from {reader.path}@last."
        )


def _compare_fingerprints(reader: RunReader, processes: Processes, reporter: Reporter) -> None:
    """Report if the machine differs from the one on which the run began."""
    config, then = reader.config, json.loads(reader.facts().get("fingerprint", "{}"))
    now = fingerprint(config.machine, config.training.precision, processes.size, then.get("corpus", ""))
    if differs := differences(then, now):
        reporter.note(f"This run began elsewhere, so its bits may differ from here on ({'; '.join(differs)}).")


def changed_text(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """A text about hyperparameters that were changed."""
    return "; ".join(f"{key}: {then} then, {now} now" for key, (then, now) in sorted(changed.items()))


def missing_text(first: int, last: int, keyframe: int) -> str:
    """A text about steps that the history lost."""
    return (
        f"The steps {first} to {last} are missing from the history, although keyframe {keyframe} says that they were made: "
        f"{HISTORY}-wal was lost, or they were not recorded."
    )
