"""Which keyframes a run has, and which of them stay when the disk budget is full. Needs no torch."""

import math
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

MANY = 5_000  # keyframes whose thinning is still followed one by one
KEYFRAMES = "keyframes"  # the folder of a run that has them


def keyframe_steps(folder: Path) -> list[int]:
    """The steps that have keyframes, in order. Whatever else lies there is none."""
    names = (re.fullmatch(r"step-([0-9]{8,})", path.name) for path in folder.glob("step-*"))
    return sorted(int(name[1]) for name in names if name)


def keyframe_path(folder: Path, step: int) -> Path:
    """Where the keyframe of a step lies."""
    return folder / f"step-{step:08d}"


def victim(steps: Sequence[int], keep: Collection[int]) -> int | None:
    """The keyframe that goes next: so the newest stay dense, and the old become sparse.

    Birth, the newest, and the steps in `keep` always stay. None if there is no other.
    """
    removable = [i for i in range(1, len(steps) - 1) if steps[i] not in keep]
    if not removable:
        return None
    # The gap that its going would leave, against how far back it lies; by the root, so that old gaps stay bearable.
    return steps[min(removable, key=lambda i: (steps[i + 1] - steps[i - 1]) / math.sqrt(steps[-1] - steps[i]))]


def longest_gap(steps: int, every: int, room: int) -> int:
    """Steps between two keyframes at most, once a run of so many steps has ended with room for so many keyframes."""
    if (parts := -(-steps // every // MANY)) > 1:  # about as long in a part of the steps, with that part of the room
        return max(longest_gap(steps // parts, every, room // parts), -(-steps // max(room, 2)))
    made, room = [*range(0, steps, every), steps], max(room, 2)
    kept = np.array(made[:room])
    for step in made[room:]:  # as `victim` chooses, on arrays: there may be thousands
        kept = np.append(kept, step)
        kept = np.delete(kept, 1 + np.argmin((kept[2:] - kept[:-2]) / np.sqrt(kept[-1] - kept[1:-1])))
    return int(np.diff(kept).max(initial=0))
