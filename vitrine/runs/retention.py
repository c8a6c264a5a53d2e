"""Which keyframes a run has, and which of them stay when the disk budget is full. Needs no torch."""

import math
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

MANY = 5_000  # keyframes whose removal is still simulated one by one
KEYFRAMES = "keyframes"  # their folder in a run


def keyframe_steps(folder: Path) -> list[int]:
    """The steps that have keyframes, in order. Other files and folders are ignored."""
    names = (re.fullmatch(r"step-([0-9]{8,})", path.name) for path in folder.glob("step-*"))
    return sorted(int(name[1]) for name in names if name)


def keyframe_path(folder: Path, step: int) -> Path:
    """The folder of a step's keyframe."""
    return folder / f"step-{step:08d}"


def victim(steps: Sequence[int], keep: Collection[int]) -> int | None:
    """The keyframe to remove next. The newest keyframes stay dense, the old ones become sparse.

    Step 0, the newest keyframe, and the steps in `keep` always stay. None if there is no other.
    """
    removable = [i for i in range(1, len(steps) - 1) if steps[i] not in keep]
    if not removable:
        return None
    # The gap that its removal would leave, relative to the root of its age; the root keeps old gaps from growing too large.
    return steps[min(removable, key=lambda i: (steps[i + 1] - steps[i - 1]) / math.sqrt(steps[-1] - steps[i]))]


def longest_gap(steps: int, every: int, room: int) -> int:
    """The most steps between two keyframes at the end of a run of `steps`, with room for `room` keyframes."""
    if (parts := -(-steps // every // MANY)) > 1:  # about the same in a part of the steps, with that part of the room
        return max(longest_gap(steps // parts, every, room // parts), -(-steps // max(room, 2)))
    made, room = [*range(0, steps, every), steps], max(room, 2)
    kept = np.array(made[:room])
    for step in made[room:]:  # like `victim`, on arrays: there may be thousands
        kept = np.append(kept, step)
        kept = np.delete(kept, 1 + np.argmin((kept[2:] - kept[:-2]) / np.sqrt(kept[-1] - kept[1:-1])))
    return int(np.diff(kept).max(initial=0))
