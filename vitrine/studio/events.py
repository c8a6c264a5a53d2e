"""The event stream of a page: news of a run since a cursor, as server-sent events."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from typing_extensions import TypedDict

from vitrine.errors import RunError, VitrineError
from vitrine.runs.disk import expected_bytes, folder_bytes
from vitrine.runs.film import Film
from vitrine.runs.live import LiveReader
from vitrine.runs.reader import FILM, LIVE, RunReader, is_training
from vitrine.runs.records import EvaluationRecord, EventRecord, SampleRecord, StepRecord
from vitrine.studio.catalog import Listing, identity
from vitrine.studio.responses import RefusalError, event
from vitrine.training.pace import Pace

EVERY_S = 0.5  # between two reads of the run's history
DISK_EVERY_S = 5.0  # between two measurements of a run's folder, which may have thousands of files
HEARTBEAT_S = 10.0
STEPS = 2000  # at most in one event


@dataclass(frozen=True)
class Cursor:
    """How far a page has read: the last rows of the history's tables, and the last frame's step."""

    step: int = -1
    evaluation: int = 0
    sample: int = 0
    event: int = 0
    frame: int = -1

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Parse the cursor of an earlier event; empty: from the start."""
        if not text:
            return cls()
        try:
            numbers = [int(part) for part in text.split(".")]
            if len(numbers) != 5 or any(abs(number) >= 2**62 for number in numbers):
                raise ValueError
            return cls(*numbers)
        except ValueError:
            raise RefusalError(
                400, f"A cursor comes from an earlier event of the stream: got {text[:100]!r}."
            ) from None

    def __str__(self) -> str:
        return ".".join(map(str, astuple(self)))


@dataclass(frozen=True)
class State:
    """The run's state in an event. If it is unchanged and nothing is new, no event is sent."""

    steps_made: int
    training: bool
    paused: bool
    live_step: int | None
    identity: str
    left_s: float | None
    disk_bytes: int
    disk_expected_bytes: int | None


def news(reader: RunReader, cursor: Cursor) -> tuple[dict[str, Any], Cursor, State]:
    """What was written since the cursor, the new cursor, and the run's state."""
    steps = [record for _, record in reader.written_after(StepRecord, cursor.step)]
    evaluations = reader.written_after(EvaluationRecord, cursor.evaluation)
    samples = reader.written_after(SampleRecord, cursor.sample)
    events = reader.written_after(EventRecord, cursor.event)
    frames = [step for step in film_steps(reader.path) if step > cursor.frame]
    new = {
        "steps": [[s.step, s.loss, s.gradient_norm, s.learning_rate, s.duration_s] for s in thinned(steps)],
        "evaluations": [record for _, record in evaluations],
        "samples": [record for _, record in samples],
        "events": [record for _, record in events],
        "film_steps": frames,
    }
    after = replace(
        cursor,
        step=steps[-1].step if steps else cursor.step,
        evaluation=evaluations[-1][0] if evaluations else cursor.evaluation,
        sample=samples[-1][0] if samples else cursor.sample,
        event=events[-1][0] if events else cursor.event,
        frame=frames[-1] if frames else cursor.frame,
    )
    training = is_training(reader.path)
    picture = LiveReader(reader.path / LIVE).read() if training else None
    state = State(
        reader.steps_made(),
        training,
        training and is_paused(reader),
        picture.step if picture else None,
        identity(reader),
        **progress(reader, training),
    )
    return new, after, state


class Progress(TypedDict):
    """How far a training is. left_s: seconds to its end, by its pace; None: it does not train, or has no step to
    tell by. disk_bytes: size of the run's folder, a few seconds ago at most; disk_expected_bytes: an estimate of it at the end, while the
    run trains.
    """

    left_s: float | None
    disk_bytes: int
    disk_expected_bytes: int | None


_disks: dict[Path, tuple[float, int]] = {}


def progress(reader: RunReader, training: bool) -> Progress:
    """The time that is left, and the disk."""
    measured_s, size = _disks.get(reader.path, (-DISK_EVERY_S, 0))
    if time.monotonic() - measured_s >= DISK_EVERY_S:
        size = folder_bytes(reader.path)
        _disks[reader.path] = time.monotonic(), size
    if not training:
        return {"left_s": None, "disk_bytes": size, "disk_expected_bytes": None}
    pace = Pace.of(reader)
    left_s = round(pace.left_s(reader.steps_made()), 1) if pace.steps else None
    return {"left_s": left_s, "disk_bytes": size, "disk_expected_bytes": expected_bytes(reader)}


def thinned(steps: list[StepRecord]) -> list[StepRecord]:
    """At most STEPS of them: the lowest and the highest loss of each stretch, and the last one."""
    if len(steps) <= STEPS:
        return steps
    losses = np.array([record.loss for record in steps])
    kept = {len(steps) - 1}
    for part in np.array_split(np.arange(len(steps)), STEPS // 2 - 1):
        finite = np.where(np.isfinite(losses[part]), losses[part], 0)
        kept |= {int(part[finite.argmin()]), int(part[finite.argmax()])}
    return [steps[place] for place in sorted(kept)]


def film_steps(path: Path) -> list[int]:
    """The steps that have frames; empty without a film."""
    try:
        steps: list[int] = Film(path / FILM).steps().tolist()
    except RunError:
        return []
    return steps


def is_paused(reader: RunReader) -> bool:
    """Whether the training is paused."""
    kinds = [e.kind for e in reader.events() if e.kind in ("paused", "continued", "resumed", "born")]
    return kinds[-1:] == ["paused"]


async def follow(listing: Listing, name: str, cursor: Cursor) -> AsyncIterator[str]:
    """The events, until the page disconnects or the run is removed."""
    sent: State | None = None
    sent_s = time.monotonic()
    while True:
        try:
            new, after, state = await run_in_threadpool(lambda at: news(listing.open(name), at), cursor)
        except (VitrineError, RefusalError) as error:
            yield event({"error": str(error)})
            return
        if after != cursor or state != sent:
            cursor, sent, sent_s = after, state, time.monotonic()
            yield event({"cursor": str(cursor), **new, **state.__dict__}, str(cursor))
        elif time.monotonic() - sent_s > HEARTBEAT_S:
            sent_s = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(EVERY_S)
