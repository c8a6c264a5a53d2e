"""`vitrine verify`: checks of a run's files, replayed steps and gradients. Every check can fail."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from vitrine.errors import RunError
from vitrine.inspection.gradient_check import Float64
from vitrine.inspection.replay import Replayer
from vitrine.inspection.replayed_step import ReplayedStep
from vitrine.model.flat import digest
from vitrine.randomness import keyed_generator
from vitrine.runs.film import Film
from vitrine.runs.reader import CONFIG, FILM, HISTORY, KEYFRAMES, RunReader
from vitrine.runs.retention import keyframe_path, keyframe_steps
from vitrine.runs.store import digests
from vitrine.training.checkpoint import load_keyframe
from vitrine.training.resume import changed_text, missing_text

STEP_SIZE = 1e-4  # of the central differences: their error is about its square
FINITE_DIFFERENCE = 1e-5  # relative to the largest gradient of the tensor
# The run's own gradient against float64, relative to the norm of the tensor's gradient.
PRECISION = {"float32": 1e-3, "bfloat16": 0.1}


@dataclass(frozen=True)
class Check:
    """One check: what was looked at, and whether it held."""

    what: str
    held: bool
    detail: str = ""


def verify(reader: RunReader, count: int, seed: int, note: Callable[[str], None]) -> Iterator[Check]:
    """Check a run.

    Args:
        count: how many steps are replayed, and how many parameters are differentiated.
        seed: of the choice of both.
    """
    yield from check_keyframes(reader)
    damage = reader.damage()
    yield Check(HISTORY, not damage, damage or "SQLite finds no damage")
    if damage:
        return
    yield from check_history(reader)
    yield from check_files(reader)
    made = reader.steps_made()
    if not made:
        yield Check("steps", True, "none is recorded, so none can be replayed")
        return
    generator = keyed_generator(seed, "verify")
    steps = sorted(int(step) for step in generator.choice(made, min(count, made), replace=False))
    replayer, replayed = Replayer(reader, note), None
    for step in steps:
        try:
            replayed = replayer.replay(step)
        except RunError as error:
            yield Check(f"step {step} replayed", False, str(error))
            continue
        kinds, differs = replayed.comparisons.kinds.values(), replayed.comparisons.differs
        made_text = f"{sum(kind.made for kind in kinds)} comparisons equal to the bit"
        yield Check(f"step {step} replayed", replayed.exact, "; ".join(differs) or made_text)
    if replayed:
        yield from check_gradients(replayed, count, generator)


def check_keyframes(reader: RunReader) -> Iterator[Check]:
    """Digests of every keyframe, and its tensors against the census."""
    planned = {tensor.name: tensor.shape for tensor in reader.tensors}
    folder = reader.path / KEYFRAMES
    steps = keyframe_steps(folder)
    if not steps or steps[0] != 0:
        yield Check("keyframes", False, "birth is missing")
    for step in steps:
        path, what = keyframe_path(folder, step), f"keyframe {step}"
        try:
            kept = load_keyframe(path)
        except RunError as error:
            if path.is_dir():
                yield Check(what, False, str(error))
            continue  # else it made room for another meanwhile
        shapes = {name: tuple(tensor.shape) for name, tensor in kept.parameters.items()}
        odd = sorted(name for name in shapes.keys() | planned.keys() if shapes.get(name) != planned.get(name))
        if odd:
            detail = f"{odd[0]} has shape {shapes.get(odd[0])}, the census says {planned.get(odd[0])}"
        elif kept.step != step:
            detail = f"its manifest says step {kept.step}"
        elif digest(kept.parameters) != kept.written_digest:
            detail = "the digest of its parameters is not the one that was written down"
        else:
            yield Check(what, True, f"{len(shapes)} tensors as in the census, digest {kept.written_digest[:12]}")
            continue
        yield Check(what, False, detail)


def check_history(reader: RunReader) -> Iterator[Check]:
    """Whether the history lost steps, and the hyperparameters are those that the run began with."""
    missing = [missing_text(*gap) for gap in reader.missing_steps()]
    yield Check("history", not missing, " ".join(missing) or f"{reader.steps_made()} steps, none of them missing")
    if "identity" in reader.facts():
        changed = reader.changed_settings()
        yield Check(CONFIG, not changed, changed_text(changed) or "every hyperparameter as when the run began")


def check_files(reader: RunReader) -> Iterator[Check]:
    """The digests of files that never change, and the checksums of all frames of the film."""
    for name, then in json.loads(reader.facts().get("files", "{}")).items():
        try:
            now = digests(reader.path, [name])[name]
        except OSError as error:
            yield Check(name, False, f"{error.strerror}")
            continue
        yield Check(name, now == then, f"SHA-256 {now[:12]} now, {then[:12]} when it was written")
    if not (reader.path / FILM).is_dir():
        return
    damaged = []
    try:
        film = Film(reader.path / FILM)
        frames = len(film.steps())
        for number in range(frames):
            try:
                film.stored(number)
            except RunError as error:
                damaged.append(str(error))
    except (RunError, KeyError, TypeError, ValueError) as error:
        yield Check("film", False, f"{FILM}/manifest.json or picks.bin is damaged: {error}")
        return
    detail = f"{len(damaged)} of {frames} frames. {damaged[0]}" if damaged else f"{frames} frames by their checksums"
    yield Check("film", not damaged, detail)


def check_gradients(replayed: ReplayedStep, count: int, generator: np.random.Generator) -> Iterator[Check]:
    """Autograd in float64 against central differences, and the run's own gradient against that."""
    exact, plans = Float64(replayed), replayed.reader.tensors
    chances = np.array([plan.parameters for plan in plans], np.float64)
    chosen = [plans[i] for i in generator.choice(len(plans), count, p=chances / chances.sum())]
    names = list(dict.fromkeys(plan.name for plan in chosen))
    gradients = dict(
        zip(names, torch.autograd.grad(exact.loss(), [exact.parameter(name) for name in names]), strict=True)
    )
    worst, where = 0.0, ""
    with torch.no_grad():
        for plan in chosen:
            flat, place = exact.parameter(plan.name).view(-1), int(generator.integers(plan.parameters))
            before, losses = flat[place].clone(), []
            for size in (STEP_SIZE, -STEP_SIZE):
                flat[place] = before + size
                losses.append(float(exact.loss()))
            flat[place] = before
            slope = (losses[0] - losses[1]) / (2 * STEP_SIZE)
            gradient = gradients[plan.name]
            error = abs(slope - float(gradient.view(-1)[place])) / max(float(gradient.abs().max()), 1e-12)
            if error >= worst:
                worst, where = error, f"{plan.name}, flattened place {place}"
    yield Check(
        f"gradients of {count} parameters by finite differences",
        worst <= FINITE_DIFFERENCE,
        f"off by {worst:.1e} of the largest at most ({where}); {FINITE_DIFFERENCE:.0e} allowed",
    )
    allowed, worst, where = PRECISION[replayed.config.training.precision], 0.0, ""
    for name, gradient in gradients.items():
        theirs = torch.from_numpy(replayed.tensor(name).gradient).double()
        error = float((theirs - gradient.cpu()).norm() / gradient.norm().clamp_min(1e-12))
        if error >= worst:
            worst, where = error, name
    yield Check(
        f"gradients of step {replayed.step} in {replayed.config.training.precision} against float64",
        worst <= allowed,
        f"off by {worst:.1e} of their norm at most ({where}); {allowed:g} allowed",
    )
