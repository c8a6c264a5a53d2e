"""Creates a new run: its folder with all files from before the first step, and then its training."""

import errno
import fcntl
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from vitrine._files import fsync, partial
from vitrine._json import dumps
from vitrine.config import Config
from vitrine.errors import ConfigError, RunError
from vitrine.model.inventory import tensor_fact
from vitrine.recording.loggers import with_loggers
from vitrine.recording.reporter import Reporter
from vitrine.runs.chosen import chosen_fact
from vitrine.runs.reader import CHAT_TEMPLATE, CONFIG, HISTORY, KEYFRAMES, LOCK, TOKENIZER, TOKENS
from vitrine.runs.refusals import sentences
from vitrine.runs.store import Store, digests
from vitrine.text import token_files
from vitrine.text.tokenizer import TOKENIZER_CONFIG, save_tokenizer
from vitrine.training.checkpoint import Snapshot, save_keyframe, take_snapshot, written_digest
from vitrine.training.checks import check_memory
from vitrine.training.device import check_device, fingerprint
from vitrine.training.distributed import Processes, joined
from vitrine.training.loop import Result, Trainer
from vitrine.training.request import Prepared, Request, complete, lay
from vitrine.training.state import build_state
from vitrine.training.tokens import keep_tokens, tell_what_was_read

LONGEST_NAME = 200  # bytes; the temporary folder of a new run has a longer name


def train(request: Request, reporter: Reporter | None = None, started_s: float = 0.0) -> Result:
    """Train a new run to its end. Nothing is left behind if the request is wrong.

    started_s: when the command began (time.monotonic), for its duration; 0: now.
    """
    started_s = started_s or time.monotonic()
    path = Path(request.run) if request.run else None
    if path:
        check_new(path)
    draft = lay(request)
    with joined(check_device(draft.facts.device).type) as processes:
        reporter = reporter if reporter and processes.first else Reporter()
        prepared = complete(draft, processes, reporter)
        check_memory(prepared.config, reporter.note)
        path = _make_run(path, prepared, processes)
        with opened(path, prepared.config, processes, reporter) as reporter:
            tell_what_was_read(prepared.tokens, prepared.config, reporter)
            reporter.started(prepared.config, path)
            times = started_s, request.for_s, prepared.ready_s
            trainer = Trainer(path, prepared.config, prepared.tokens, processes, reporter, *times)
            trainer.enter()
            return trainer.run()


def check_new(path: Path) -> None:
    """Raises RunError if no run can be made at this path."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise RunError(f"The name of a run is text in UTF-8: got {str(path)!a}. Give --run another name.") from None
    if (size := len(path.name.encode())) > LONGEST_NAME:
        raise RunError(f"The name of a run has at most {LONGEST_NAME} bytes: got {size}. Give --run a shorter one.")
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise RunError(f"No run can be made at {path}: {error.strerror}. Give --run another name.") from None
    if path.is_symlink() and not path.exists():
        raise RunError(f"{path} is a link to {path.readlink()}, which does not exist. Give --run another name.")
    raise _exists_already(path)


def _make_run(asked: Path | None, prepared: Prepared, processes: Processes) -> Path:
    """Make the run folder: the requested one, else runs/NAME-1 or the next free number.

    It is made under another name, and renamed when it is complete.
    """
    stem = Path(prepared.config.data.corpus[0]).name.split(".")[0].split("*")[0] or "run"
    path, number = asked or Path("runs", f"{stem}-1"), 1
    if processes.first:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial(path) as temporary:
                _write_run(temporary, prepared, processes)
                while not _rename(temporary, path):
                    if asked:
                        raise _exists_already(asked)
                    number += 1
                    path = Path("runs", f"{stem}-{number}")
                fsync(path.parent)
        except (OSError, sqlite3.Error) as error:
            raise RunError(f"The run folder {path} cannot be made: {error}.") from None
    processes.wait("the run folder is made")
    return asked or Path("runs", f"{stem}-{int(processes.agree(number))}")


def _write_run(folder: Path, prepared: Prepared, processes: Processes) -> None:
    """Write all files of a run from before the first step, including the initial parameters."""
    config, tokens = prepared.config, prepared.tokens
    (folder / CONFIG).write_text(config.to_toml(), encoding="utf-8")
    save_tokenizer(tokens.tokenizer, folder / TOKENIZER)
    if tokens.tokenizer_name.endswith(".json"):  # from a file; its neighbouring files belong to it
        for file in map(Path(tokens.tokenizer_name).with_name, (CHAT_TEMPLATE, TOKENIZER_CONFIG)):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
    keep_tokens(tokens, folder / TOKENS)
    _, state = build_state(config, Processes())
    initial = take_snapshot(state)
    if prepared.parent:
        initial = replace(initial, parameters=_fitting(prepared.parent, initial))
    kept = save_keyframe(folder / KEYFRAMES, initial)
    with Store(folder / HISTORY) as store:
        store.set_fact("birth", written_digest(kept))
        store.set_fact("files", json.dumps(digests(folder, [TOKENIZER])))
        store.set_fact("chosen", chosen_fact(prepared.chosen, config))
        _set_facts(store, config, tokens, processes)


def _fitting(parent: Snapshot, initial: Snapshot) -> dict[str, torch.Tensor]:
    """The parent's parameters. Raises RunError unless the new model has the same tensors."""
    for name in parent.parameters.keys() | initial.parameters.keys():
        theirs, ours = parent.parameters.get(name), initial.parameters.get(name)
        if theirs is None or ours is None or theirs.shape != ours.shape:
            shapes = [None if t is None else tuple(t.shape) for t in (theirs, ours)]
            raise ConfigError(
                f"The parent's parameters do not fit this model: {name} has shape {shapes[0]} there "
                f"and {shapes[1]} here. Leave the [model] hyperparameters as the parent has them."
            )
    return parent.parameters


def _set_facts(store: Store, config: Config, tokens: token_files.Prepared, processes: Processes) -> None:
    facts = fingerprint(config.machine, config.training.precision, processes.size, tokens.corpus_digest)
    store.set_fact("fingerprint", json.dumps(facts))
    store.set_fact("source_digests", json.dumps(tokens.source_digests))
    if tokens.summary:
        store.set_fact("reading", dumps(tokens.summary))
    store.set_fact("identity", config.identity())
    store.set_fact("tensors", tensor_fact(config.model))
    store.event(
        0,
        "born",
        f"seed {config.training.seed}" if not config.training.parent else f"from {config.training.parent}",
    )


def _rename(folder: Path, path: Path) -> bool:
    """Rename a folder; False if the new name is taken, even if only since a moment ago."""
    if path.exists():
        return False
    try:
        folder.rename(path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    return True


def _exists_already(path: Path) -> RunError:
    return RunError(f"{path} exists already. Give --run another name, or resume it: vitrine resume {path}.")


@contextmanager
def opened(path: Path, config: Config, processes: Processes, reporter: Reporter) -> Iterator[Reporter]:
    """Open a run folder for training: the first process holds the lock for all of them, and has the loggers."""
    if not processes.first:
        with sentences(path):
            yield Reporter()
        return
    with lock(path), with_loggers(reporter, config.recording.mirror) as told, sentences(path):
        yield told


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Lock a run folder, so that no second trainer uses it."""
    with sentences(path):
        handle = open(path / LOCK, "a+", encoding="utf-8")  # noqa: SIM115
    with handle:
        for attempt in range(5):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:  # perhaps another process that only tests the lock
                if attempt == 4:
                    handle.seek(0)
                    raise RunError(
                        f"{path} is being trained by process {handle.read().strip()}. Wait for it, or stop it first."
                    ) from None
                time.sleep(0.05)
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield
