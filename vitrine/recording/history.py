"""The run's history while it trains; steps that are made again are compared with their earlier records."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitrine.runs.layout import Layout, Numbers
from vitrine.runs.records import StepRecord
from vitrine.runs.store import Store, digests


class History:
    """The history of a run while it trains.

    Args:
        path: of the database.
        enabled: whether steps are recorded; events and facts always are.
    """

    def __init__(self, path: Path, enabled: bool) -> None:
        self.path, self.store, self.enabled = path, Store(path), enabled
        self.layout = self.store.layout()
        self.overlap_end, self.equal, self.different = -1, 0, 0
        self.behind = False  # whether another program has locked the database

    def keep_digests(self, run: Path, names: Sequence[str]) -> None:
        """Record the digests of new files that never change."""
        self.store.set_fact("files", json.dumps(json.loads(self.store.fact("files") or "{}") | digests(run, names)))

    def begin(self, layout: Layout) -> None:
        """Set the layout of the statistics; a resumed run keeps the layout that it has."""
        if self.layout is None:
            self.layout = layout
            self.store.set_fact("statistics", json.dumps(layout.facts()))

    def look_every(self, number: int, every: int) -> Layout:
        """Take statistics every `every` steps from about this step on; `every` is a multiple of the earlier value."""
        assert self.layout is not None
        # Not from a step that was already made or recorded before a resume.
        start = -(-max(number, self.overlap_end + 1) // every) * every
        self.layout = replace(self.layout, since=(start, every))
        self.store.set_fact("statistics", json.dumps(self.layout.facts()))
        return self.layout

    def resumed(self, number: int) -> None:
        """Training resumes at this step; records beyond it are from before."""
        last = self.store.connection.execute("SELECT max(step) FROM steps").fetchone()[0]
        self.overlap_end = -1 if last is None else last
        if self.layout:
            self.store.open_blocks(number, self.layout)
        self.store.event(number, "resumed")

    def snapshots(self) -> set[int]:
        """The steps for which a keyframe was requested."""
        return {step for (step,) in self.store.connection.execute("SELECT step FROM events WHERE kind = 'snapshot'")}

    def record(self, record: StepRecord, statistics: Numbers | None, note: Callable[[str], None]) -> None:
        """Record a step; compare it if it was recorded before."""
        if not self.enabled:
            return
        if record.step <= self.overlap_end:
            self._compare(record, statistics, note)
        # The record last: writing it commits, even if a step takes longer than the longest wait for a commit.
        if statistics is not None and self.layout:
            self.store.write_statistics(record.step, statistics, self.layout)
        self.store.write(record)
        if self.behind != bool(self.store.waiting):
            self.behind = not self.behind
            note(
                f"Another program has locked {self.path}: training continues, and its records wait in memory."
                if self.behind
                else f"{self.path} is free again, and has all records."
            )

    def _compare(self, record: StepRecord, statistics: Numbers | None, note: Callable[[str], None]) -> None:
        old, old_statistics = self.store.step_record(record.step), self.store.statistics_row(record.step)
        if old:
            same = (old.loss, old.gradient_norm) == (record.loss, record.gradient_norm)
            if statistics is not None and old_statistics is not None:
                same &= np.array_equal(statistics.view(np.uint32), old_statistics.view(np.uint32))
            self.equal, self.different = self.equal + same, self.different + (not same)
        if record.step == self.overlap_end:
            text = f"{self.equal} steps made again: equal to the bit"
            if self.different:
                text = f"{self.different} of {self.equal + self.different} steps made again differ from before"
            self.store.event(record.step, "recomputed", text)
            note(text + ".")
