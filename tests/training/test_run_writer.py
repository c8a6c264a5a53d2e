"""The null twin of the run writer: the processes that write nothing decide like the first one."""

import inspect
from pathlib import Path

from tests.conftest import TINY
from vitrine.config import parse_settings
from vitrine.recording.recorder import Recorder, StepLoss
from vitrine.recording.reporter import Reporter
from vitrine.runs.reader import RunReader
from vitrine.training.create import train
from vitrine.training.distributed import Processes
from vitrine.training.loop import Trainer
from vitrine.training.request import Request
from vitrine.training.run_writer import RunWriter, Writer
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


def written(run: Path) -> dict[Path, int]:
    """When each file was written last; what SQLite's readers share is left out."""
    return {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file() and file.suffix != ".sqlite-shm"}
