"""The null twin of the run writer: the processes that write nothing decide like the first one."""

import inspect
from pathlib import Path

import pytest

from tests.conftest import TINY
from vitrine.config import parse_settings
from vitrine.recording.recorder import Recorder, StepLoss
from vitrine.recording.reporter import Reporter
from vitrine.runs.reader import RunReader
from vitrine.training.create import train
from vitrine.training.distributed import Processes
from vitrine.training.loop import Trainer
from vitrine.training.request import Request
from vitrine.training.resume import resume
from vitrine.training.run_writer import RunWriter, Writer, sample_lengths
from vitrine.training.tokens import open_tokens


def test_both_writers_answer_to_the_same_names():
    public = {name: member for name, member in vars(Writer).items() if not name.startswith("_")}
    assert {name for name in vars(RunWriter) if not name.startswith("_")} == set(public)
    for name, member in public.items():
        assert inspect.signature(member) == inspect.signature(getattr(RunWriter, name))


def test_a_process_that_writes_nothing_resumes_with_the_same_rule_as_the_first(book, tmp_path):
    settings = parse_settings([*TINY[1::2], "training.target_loss=0.01", "training.patience=9"])
    train(Request((str(book),), str(tmp_path / "r"), settings=settings, steps=25))
    reader = RunReader(tmp_path / "r")
    first, other = (
        Trainer(reader.path, reader.config, open_tokens(reader), Processes(rank), Reporter(), 0.0) for rank in (0, 1)
    )
    first.resume()
    before = written(reader.path)
    other.resume()
    assert written(reader.path) == before
    assert (type(first.observer), type(other.observer)) == (Recorder, StepLoss)
    assert vars(other.rule) == vars(first.rule)
    assert other.rule.best_loss == min(e.loss for e in reader.sampled_evaluations() if e.step < 25)


def test_short_samples_come_first_at_growing_distances_and_long_ones_to_the_end():
    lengths = sample_lengths(600, 5)
    assert lengths == {
        **dict.fromkeys([0, 1, 2, 5, 12, 28, 65, 150], 24),
        **dict.fromkeys([300, 600], 64),
    }
    assert sample_lengths(600, 3) == dict.fromkeys([0, 150, 600], 64)
    assert sample_lengths(600, 0) == {}


@pytest.mark.parametrize("count", [1, 2, 4, 5, 6, 30])
@pytest.mark.parametrize("steps", [1, 7, 40, 600, 20_000])
def test_samples_cost_no_more_than_so_many_long_ones(steps, count):
    lengths = sample_lengths(steps, count)
    assert sum(lengths.values()) <= 64 * count
    assert 0 in lengths
    assert (steps in lengths) == (count > 1)
    assert max(lengths) <= steps


def test_samples_are_written_when_they_are_due_also_by_a_resumed_run_and_change_no_bit(book, tmp_path):
    settings, digests = [*TINY[1::2], "recording.text_samples=5"], set()
    for name, more in (("whole", []), ("none", ["recording.text_samples=0"])):
        asked = parse_settings([*settings, *more])
        digests.add(train(Request((str(book),), str(tmp_path / name), settings=asked, steps=40)).digest)
    stopping = Stop(9)
    with pytest.raises(KilledError):
        train(Request((str(book),), str(tmp_path / "half"), settings=parse_settings(settings), steps=40), stopping)
    digests.add(resume(tmp_path / "half").digest)
    assert len(digests) == 1
    samples = [RunReader(tmp_path / name).samples() for name in ("whole", "half")]
    assert samples[0] == samples[1]
    assert [sample.step for sample in samples[0]] == sorted(sample_lengths(40, 5))
    assert RunReader(tmp_path / "none").samples() == []


class KilledError(Exception):
    """Ends a training as a kill would."""


class Stop(Reporter):
    """Raises at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, record, tokens_per_s, left_s):
        if record.step == self.step:
            raise KilledError


def written(run: Path) -> dict[Path, int]:
    """When each file was written last; what SQLite's readers share is left out."""
    return {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file() and file.suffix != ".sqlite-shm"}
