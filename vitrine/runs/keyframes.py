"""Which keyframes a run has, and which of them stay when the disk budget is full. Needs no torch."""

import itertools
import math
from collections.abc import Collection, Sequence
from pathlib import Path

SHOWN = 500  # keyframes that `longest_gap` works with at most


def keyframe_steps(folder: Path) -> list[int]:
    """The steps that have keyframes, in order."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def keyframe_path(folder: Path, step: int) -> Path:
    """Where the keyframe of a step lies."""
    return folder / f"step-{step:08d}"


def victim(steps: Sequence[int], keep: Collection[int]) -> int | None:
    """The keyframe that goes first: so the newest stay dense, and the old become sparse.

    Birth, the newest, and the steps in `keep` always stay. None if there is no other.
    """
    removable = [i for i in range(1, len(steps) - 1) if steps[i] not in keep]
    if not removable:
        return None
    # The gap that its going would leave, against how far back it lies; by the root, so that old gaps stay bearable.
    return steps[min(removable, key=lambda i: (steps[i + 1] - steps[i - 1]) / math.sqrt(steps[-1] - steps[i]))]


def longest_gap(steps: int, every: int, room: int) -> int:
    """Steps between two keyframes at most, once a run of so many steps has ended with room for so many keyframes.

    Where many have to go, it is worked out on fewer, in proportion: to about one part in a hundred.
    """
    made = -(-steps // every) + 1
    if made <= room:
        return min(every, steps)
    shown = min(made, SHOWN)
    room = max(3, round(room * shown / made))
    kept: list[int] = []
    for number in range(shown):
        kept.append(number)
        if len(kept) > room and (out := victim(kept, ())) is not None:
            kept.remove(out)
    gap = max((b - a for a, b in itertools.pairwise(kept)), default=0)
    return min(steps, round(gap * every * made / shown))
