"""What recording costs: how often values are recorded, and how much disk they take. Needs no torch."""

import contextlib
import math
import stat
from dataclasses import dataclass
from pathlib import Path

from vitrine.config import Config
from vitrine.model.inventory import flops_per_token, inventory, optimizer_numbers
from vitrine.runs.chosen import Derived
from vitrine.runs.film import MAX_FRAMES, film_bytes
from vitrine.runs.layout import SAMPLE, STATISTICS
from vitrine.runs.reader import FILM, HISTORY, LIVE, RunReader
from vitrine.runs.retention import KEYFRAMES, longest_gap

STATISTICS_BYTES = 250_000_000  # limit for all rows of statistics
FAST_S, SLOW_S = 2.0, 60.0  # training time between two keyframes: the time that a replay should take, and the limit
LOOKS = 0.005  # share of the training time for statistics; with histograms and film the total stays below 2%
WRITE_BYTES_PER_S = 5_000_000  # of keyframes, so that writing them hardly slows the training down
TINY, IN_CACHE = 200_000, 2_000_000  # parameters: smaller models fit into a processor's inner caches, or its outer one
FLOPS_PER_S = {"cpu": 1e11, "cuda": 1e14, "mps": 1e12}  # estimated speed of a device; no bit depends on it
HISTOGRAM_BYTES = 1_000  # of one tensor, approximately


@dataclass(frozen=True)
class Recording:
    """What a run will take on disk, in bytes, and the most steps that a replay has to make."""

    statistics_bytes: int
    histogram_bytes: int
    film_bytes: int
    keyframe_bytes: int
    keyframes: int
    reentry_steps: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.statistics_bytes + self.histogram_bytes + self.film_bytes + self.keyframes * self.keyframe_bytes


def recording_settings(config: Config) -> dict[str, Derived]:
    """Choose the cadences of [recording] for a model, its steps and the disk.

    The cadence of statistics is an estimate for the first steps. After that it is measured, except for the smallest models.
    """
    steps, tokens = config.training.steps, config.tokens_per_step
    tensors = inventory(config.model)
    # Statistics read all parameters from memory, like the work on a few tokens. With these values they cost about one
    # step in a hundred. The smallest models are made to be looked at: there, every step has statistics.
    count = sum(t.parameters for t in tensors)
    tokens_enough = 1 if count < TINY else 4_000 if count < IN_CACHE else 10_000
    every = max(math.ceil(tokens_enough / tokens), math.ceil(steps * row_bytes(config) / STATISTICS_BYTES))
    step_s = 0.005 + tokens * flops_per_token(config.model) / FLOPS_PER_S.get(config.machine.device.split(":")[0], 1e11)
    size = keyframe_bytes(config)
    least_s = max(FAST_S, size / WRITE_BYTES_PER_S)
    fair_s = min(steps, 10_000) * step_s * size / config.recording.disk_budget  # evenly spread over the first steps
    per_histogram = 32 if count < TINY else 64
    return {
        "statistics_every": Derived(
            every,
            ("at every step" if count < TINY else "so often that they cost about one step in a hundred, by an estimate")
            + f", as far as {STATISTICS_BYTES / 1e6:.0f} MB allow",
        ),
        "statistics_cost": (
            Derived(0.0, f"no limit in a model of fewer than {TINY:,} parameters")
            if count < TINY
            else Derived(LOOKS, f"a limit in any model of {TINY:,} parameters or more")
        ),
        "film_frames": Derived(
            min(MAX_FRAMES, max(20, steps // 10)), f"a tenth of the steps, at least 20 and at most {MAX_FRAMES:,}"
        ),
        "histograms": Derived(
            min(64, max(8, steps // per_histogram)),
            f"one for {per_histogram} steps, at least 8 and at most 64",
        ),
        "text_samples": Derived(5, "eight short texts at the start, and two long ones"),
        "keyframe_every": Derived(
            max(1, round(min(max(fair_s, least_s), max(SLOW_S, least_s)) / step_s)),
            f"by the estimated time of a step: {FAST_S:g} to {SLOW_S:g} s of training from one keyframe to the next, as far "
            "as the speed and the budget of the disk allow",
        ),
    }


def recording(config: Config) -> Recording:
    """The totals, for a run that makes all of its steps."""
    tensors = inventory(config.model)
    settings, steps = config.recording, config.training.steps
    shapes = {t.name: t.shape for t in tensors}
    size, every, evaluate_every = keyframe_bytes(config), settings.keyframe_every, config.training.evaluate_every
    # The best keyframe stays as well as the first and those of the cadence, unless it always is one of these.
    best = int(config.data.validation != 0 and evaluate_every < steps and evaluate_every % every != 0)
    room = max(2 + best, settings.disk_budget // max(1, size))
    on = int(settings.enabled)
    return Recording(
        statistics_bytes=on * -(-steps // settings.statistics_every) * row_bytes(config),
        histogram_bytes=on * 3 * len(tensors) * settings.histograms * HISTOGRAM_BYTES,
        film_bytes=on * film_bytes(shapes, settings.film_frames + 1),
        keyframe_bytes=size,
        keyframes=min(room, -(-steps // every) + 1 + best),
        reentry_steps=longest_gap(steps, every, room - best),
    )


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder and below; of a run in training, as it is just now."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # removed meanwhile
            status = path.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def expected_bytes(reader: RunReader) -> int:
    """An estimate of the size of a run's folder at its end, if it makes all of its steps."""
    config, layout = reader.config, reader.layout()
    if layout:  # the cadence that was measured in the first steps
        measured = config.recording.model_copy(update={"statistics_every": layout.every_of_late})
        config = config.model_copy(update={"recording": measured})
    written = (KEYFRAMES, FILM, LIVE, HISTORY, f"{HISTORY}-wal", f"{HISTORY}-shm")
    files = [path for path in reader.path.iterdir() if path.name not in written]
    rest = sum(folder_bytes(path) if path.is_dir() else path.stat().st_size for path in files)
    return rest + recording(config).total_bytes


def keyframe_bytes(config: Config) -> int:
    """Size of a keyframe: parameters and optimizer state, in float32."""
    tensors = inventory(config.model)
    return 4 * (sum(t.parameters for t in tensors) + optimizer_numbers(config, tensors))


def row_bytes(config: Config) -> int:
    """Size of the statistics of one step."""
    tensors = inventory(config.model)
    sampled = sum(min(SAMPLE, t.parameters) for t in tensors)
    return 4 * (len(STATISTICS) * len(tensors) + 2 * sampled)
