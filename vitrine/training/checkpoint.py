"""Keyframes: the parameters and optimizer state that a step starts from, on disk, safe against a kill.

A keyframe is a folder. It is written under another name, flushed, its manifest last, and then renamed, so
that it is never there in part. Before removal it is renamed, too. Older ones are removed only after the new one is safe.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitrine._files import fsync, fsync_folder, partial, sha256
from vitrine.config import Config, RecordingConfig
from vitrine.errors import RunError
from vitrine.model.decoder import initialise
from vitrine.model.flat import digest
from vitrine.runs.reader import KEYFRAMES, RunReader
from vitrine.runs.refusals import refusal
from vitrine.runs.retention import keyframe_path, keyframe_steps, victim
from vitrine.step import State

FORMAT_VERSION = 1
MODEL, OPTIMIZER, MANIFEST = "model.safetensors", "optimizer.safetensors", "manifest.json"


@dataclass(frozen=True)
class Snapshot:
    """A copy of what a step starts from, by name, on the CPU.

    written_digest: the digest in the keyframe's manifest; empty if the snapshot comes from no keyframe.
    """

    step: int
    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    written_digest: str = ""

    @property
    def digest(self) -> str:
        """The digest of the parameters; see `vitrine.model.flat.digest`."""
        return digest(self.parameters)


def take_snapshot(state: State) -> Snapshot:
    """Copy parameters and optimizer state."""
    values = state.parameters.values.detach().to("cpu", copy=True)
    memories = {name: memory.to("cpu", copy=True) for name, memory in state.optimizer.named_state().items()}
    return Snapshot(state.step, state.parameters.entries.named(values), memories)


def restore(state: State, snapshot: Snapshot) -> None:
    """Restore a state from a snapshot."""
    _copy(state.parameters.tensors, snapshot.parameters)
    _copy(state.optimizer.named_state(), snapshot.optimizer)
    state.step = snapshot.step


def save_keyframe(folder: Path, snapshot: Snapshot) -> Path:
    """Write a snapshot as `folder`/step-NNNNNNNN, durably and atomically. Raises OSError if the disk refuses."""
    destination = keyframe_path(folder, snapshot.step)
    folder.mkdir(exist_ok=True)  # but not the run's folder: a deleted run is not made again
    with partial(destination) as temporary:
        for name, tensors in ((MODEL, snapshot.parameters), (OPTIMIZER, snapshot.optimizer)):
            try:
                save_file(tensors, temporary / name, metadata={"format": "pt"})
            except SafetensorError as error:  # raised for errors of the disk
                found = re.search(r"os error (\d+)", str(error))
                code = int(found[1]) if found else errno.EIO
                raise OSError(code, os.strerror(code), str(temporary / name)) from None
            (temporary / name).chmod(
                0o666 & temporary.stat().st_mode
            )  # safetensors makes files that only the owner can read
        files = {name: _describe(temporary / name) for name in (MODEL, OPTIMIZER)}
        manifest = {"version": FORMAT_VERSION, "step": snapshot.step, "digest": snapshot.digest, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        fsync_folder(temporary)
        before = _put_away(destination)  # the same step again, after a resume: the same bits
        temporary.rename(destination)
    fsync(folder)
    shutil.rmtree(before, ignore_errors=True)
    return destination


def load_keyframe(path: Path, optimizer: bool = True) -> Snapshot:
    """Read a keyframe. Raises RunError, naming the file, if one bit differs from what was written.

    optimizer: whether to read the optimizer's state.
    """
    try:
        return _load(path, (MODEL, OPTIMIZER) if optimizer else (MODEL,))
    except (RunError, OSError) as error:
        if not path.is_dir():
            raise RunError(f"{path} is gone: old keyframes are removed for newer ones.") from None
        if isinstance(error, OSError):
            raise RunError(f"{error.filename or path} cannot be read: {error.strerror or error}.") from None
        raise


def written_digest(path: Path) -> str:
    """The digest of a keyframe's parameters from its manifest; no other file is read. Raises RunError."""
    return str(_read_manifest(path)["digest"])


def load_initial(folder: Path, config: Config, noted: str) -> dict[str, Tensor]:
    """The parameters of step 0: from their keyframe or, if that is damaged, from the seed. See `reinitialise`."""
    try:
        return load_keyframe(keyframe_path(folder, 0), optimizer=False).parameters
    except RunError as error:
        try:
            return reinitialise(folder, config, noted)
        except RunError as reason:
            raise RunError(f"{error} {reason}") from None


def reinitialise(folder: Path, config: Config, noted: str) -> dict[str, Tensor]:
    """The parameters of step 0 from the seed. noted: their digest in the history; empty: the keyframe's manifest is used.

    Raises RunError if they did not come from the seed, or have another digest.
    """
    training = config.training
    if training.parent:
        raise RunError(f"It came from {training.parent}, so it cannot be made again from the seed.")
    try:
        then = noted or written_digest(keyframe_path(folder, 0))
    except RunError:
        raise RunError("Its digest is lost with it, so parameters from the seed cannot be checked.") from None
    drawn = {name: tensor.detach() for name, tensor in initialise(config.model, training.seed).named_parameters()}
    if (now := digest(drawn)) != then:
        raise RunError(
            f"The seed {training.seed} now gives parameters with the digest {now[:12]}; {then[:12]} was recorded."
        )
    return drawn


def _load(path: Path, names: Collection[str]) -> Snapshot:
    manifest = _read_manifest(path)
    for name in names:
        file, facts = path / name, manifest["files"][name]
        size = file.stat().st_size if file.is_file() else -1
        if size != facts["size_bytes"]:
            seen = f"has {size} bytes" if size >= 0 else "is missing"
            raise RunError(f"{file} {seen}; {facts['size_bytes']} were written. The keyframe is damaged.")
        if sha256(file) != facts["sha256"]:
            raise RunError(f"{file} is not as it was written: its SHA-256 differs. The keyframe is damaged.")
    try:
        tensors = {name: load_file(path / name) for name in names}
        return Snapshot(manifest["step"], tensors[MODEL], tensors.get(OPTIMIZER, {}), manifest["digest"])
    except SafetensorError as error:
        raise RunError(f"{path} cannot be read: {error}. The keyframe is damaged.") from None


def load_newest(folder: Path, warn: Callable[[str], None]) -> Snapshot:
    """The newest sound keyframe; `warn` is called for each damaged one that was skipped."""
    for step in reversed(keyframe_steps(folder)):
        try:
            return load_keyframe(keyframe_path(folder, step))
        except RunError as error:
            warn(f"{error} Using the one before.")
    raise RunError(f"{folder} holds no sound keyframe: the run cannot be resumed. Start a new one with vitrine train.")


def find_step(reader: RunReader, which: str | int) -> int:
    """The step of a keyframe: "last", "best" (validation), or one that has a keyframe."""
    folder = reader.path / KEYFRAMES
    steps = keyframe_steps(folder)
    if not steps:
        raise RunError(f"{reader.path} has no keyframe.")
    if which == "last":
        step_number = steps[-1]
    elif which == "best":
        best = reader.best_step()
        step_number = steps[-1] if best is None else best
    elif str(which).isdecimal():
        step_number = int(which)
    else:
        raise RunError(f"A step is last, best, or a number: got {which!r}. {reader.path} has {_listed(steps)}.")
    if step_number not in steps:
        near = min(steps, key=lambda s: abs(s - step_number))
        raise RunError(
            f"{reader.path} has no keyframe of step {step_number}. The nearest is {near}: it has {_listed(steps)}."
        )
    return step_number


def load_step(reader: RunReader, which: str | int) -> Snapshot:
    """The parameters of a step (see `find_step`), without the optimizer's state, for Vitrine's own model."""
    reader.check_model()
    step_number, folder = find_step(reader, which), reader.path / KEYFRAMES
    path = keyframe_path(folder, step_number)
    try:
        return load_keyframe(path, optimizer=False)
    except RunError as error:
        if which in ("last", "best") and not path.is_dir():  # a newer one has just replaced it
            return load_step(reader, which)
        others = [step for step in keyframe_steps(folder) if step != step_number]
        hint = f" Name another step: {reader.path} has {_listed(others)}." if others else ""
        raise RunError(f"{error}{hint}") from None


def thin(folder: Path, budget_bytes: int, keep: Collection[int], superseded: Collection[int] = ()) -> None:
    """Remove superseded keyframes, then others until they fit the budget; see `runs.retention.victim`."""
    steps = keyframe_steps(folder)
    out = set(superseded) & set(steps[1:-1]) - set(keep)
    steps = [step for step in steps if step not in out]
    sizes = {step: sum(f.stat().st_size for f in keyframe_path(folder, step).iterdir()) for step in steps}
    while sum(sizes[step] for step in steps) > budget_bytes and (next_out := victim(steps, keep)) is not None:
        out.add(next_out)
        steps.remove(next_out)
    for step in sorted(out):
        shutil.rmtree(_put_away(keyframe_path(folder, step)))


def _put_away(path: Path) -> Path:
    """Rename a keyframe, if it exists, so that it no longer counts as one: it is never there in part."""
    hidden = path.with_name(f".{path.name}.out")
    shutil.rmtree(hidden, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        path.rename(hidden)
    return hidden


class KeyframeWriter:
    """Writes keyframes in a separate thread, one at a time, while training continues.

    Args:
        folder: the run's keyframes folder.
        recording: how often they are kept, and how much disk they may take.
    """

    def __init__(self, folder: Path, recording: RecordingConfig) -> None:
        self.folder, self.recording = folder, recording
        self.best_step = 0
        self.superseded: set[int] = set()  # earlier best ones
        self.asked: set[int] = set()  # requested by a user: these stay
        self.thread: threading.Thread | None = None
        self.failure: OSError | None = None

    def best(self, step: int) -> None:
        """The parameters of this step are the best so far. The keyframe of the previous best is removed once this one is safe."""
        if self.best_step % self.recording.keyframe_every:
            self.superseded.add(self.best_step)
        self.best_step = step

    def save(self, state: State, must: bool = False) -> bool:
        """Copy the state now; write it in the background.

        While the previous keyframe is still being written, this one is skipped and False is returned: training
        does not wait for a slow disk. With `must`, it waits.
        """
        if self.thread and self.thread.is_alive() and not must:
            return False
        self.flush()
        snapshot = take_snapshot(state)
        # Copies: a new best step that comes while this one is being written is not safe yet.
        rest = {self.best_step}, self.superseded - self.asked
        self.thread = threading.Thread(target=self._write, args=(snapshot, *rest), name="keyframe")
        self.thread.start()
        return True

    def flush(self) -> None:
        """Wait until everything is safe on disk. Raises RunError if it could not be written."""
        if self.thread:
            self.thread.join()
            self.thread = None
        if self.failure:
            raise refusal(self.failure, self.folder.parent)

    def _write(self, snapshot: Snapshot, keep: set[int], superseded: set[int]) -> None:
        try:
            save_keyframe(self.folder, snapshot)
            thin(self.folder, self.recording.disk_budget, keep, superseded)
        except OSError as error:
            self.failure = error
            remove_partial(self.folder)


def remove_partial(folder: Path) -> None:
    """Remove keyframes that a killed writer left half-written or half-removed."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def _listed(steps: list[int]) -> str:
    return f"keyframes of the steps {', '.join(map(str, steps))}"


def _copy(targets: dict[str, Tensor], sources: dict[str, Tensor]) -> None:
    if targets.keys() != sources.keys():
        odd = sorted(targets.keys() ^ sources.keys())
        raise RunError(f"The keyframe does not fit the model: {odd[0]} is on one side only.")
    with torch.no_grad():
        for name, target in targets.items():
            if target.shape != sources[name].shape:
                raise RunError(
                    f"The keyframe does not fit the model: {name} has shape {tuple(sources[name].shape)} "
                    f"there and {tuple(target.shape)} here."
                )
            target.copy_(sources[name])


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["version"] > FORMAT_VERSION:
            raise RunError(
                f"{path} has format version {manifest['version']}; this Vitrine reads up to version "
                f"{FORMAT_VERSION}. Use a newer Vitrine."
            )
        if {"step", "digest", "files"} <= manifest.keys() and {MODEL, OPTIMIZER} <= manifest["files"].keys():
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise RunError(f"{path / MANIFEST} is missing or unreadable. The keyframe is damaged.")


def _describe(file: Path) -> dict[str, Any]:
    return {"size_bytes": file.stat().st_size, "sha256": sha256(file)}
