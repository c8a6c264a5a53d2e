"""The Python API: what is public, and a run as an object."""

import ast
import io
import json
import pydoc
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import vitrine
from vitrine.errors import RunError
from vitrine.inspection.health import examine
from vitrine.inspection.views import inspect

EXAMPLES = Path(__file__).parents[1] / "examples"
PAGE = Path(vitrine.__file__).parent / "studio" / "page" / "index.html"
PUBLIC = [
    *("Config", "ConfigError", "CorpusError", "DivergedError", "PromptError", "Run", "RunError", "VitrineError"),
    *("import_run", "open_run", "plan", "python_topics", "render", "resume", "train"),
]
GAIN = "final_norm.gain[3]"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, prose: str) -> vitrine.Run:
    folder = tmp_path_factory.mktemp("run")
    (folder / "book.txt").write_text(prose[:20_000], encoding="utf-8")
    size = {"model.n_layers": 1, "model.d_model": 16, "model.n_heads": 1, "model.context": 16, "training.batch_size": 2}
    settings = size | {"recording.statistics_every": 2, "training.evaluate_every": 10, "training.precision": "float32"}
    return vitrine.train(folder / "book.txt", run=folder / "r", steps=20, settings=settings)


def test_the_public_names_are_these_and_no_others():
    assert sorted(vitrine.__all__) == sorted(PUBLIC)
    assert [name for name in dir(vitrine) if not name.startswith("__")] == sorted(PUBLIC)


def test_help_shows_what_is_public():
    shown = io.StringIO()
    with redirect_stdout(shown):
        pydoc.Helper(output=shown)(vitrine)
    for name in PUBLIC:
        assert name in shown.getvalue()
    assert "Train a new run to its end." in shown.getvalue()


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda file: file.name)
def test_the_notebooks_use_what_is_public_alone(file: Path):
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    used = set()
    for node in ast.walk(
        ast.parse("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    ):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.module.partition(".")[0] != "vitrine", "write `import vitrine`"
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("vitrine.") for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "vitrine":
            used.add(node.attr)
    assert used
    assert used <= set(PUBLIC)


def test_a_run_answers_what_the_commands_do(run: vitrine.Run):
    assert run.inspect(GAIN, step=7).to_json() == inspect(run, GAIN, 7).to_json()
    assert run.inspect(GAIN, nudges=[0.1]).to_json()["nudge"]["moves"][0]["size"] == 0.1
    assert run.health().to_json() == examine(run).to_json()
    checks = run.verify(count=1)
    assert len(checks) > 3
    assert all(check.held for check in checks)


def test_a_run_writes_its_report_in_a_process_of_its_own(run: vitrine.Run, tmp_path: Path):
    with pytest.raises(RunError, match=r"There is no folder .*nowhere to write x\.html into\. Make it first\."):
        run.report(tmp_path / "nowhere" / "x.html")


@pytest.mark.full
@pytest.mark.skipif(not PAGE.is_file(), reason="the page is not built (make page): no report can be written")
def test_a_report_of_a_run_lies_where_it_says(run: vitrine.Run, tmp_path: Path):
    file = run.report(tmp_path / "x.html", steps="birth", cell=GAIN)
    assert file == tmp_path / "x.html"
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_tables_of_a_run_are_those_of_pandas(run: vitrine.Run):
    import pandas  # a second, for this test only

    steps = pandas.DataFrame(run.steps())
    assert steps["loss"].tolist() == [record.loss for record in run.steps()]
    assert list(steps.columns[:2]) == ["step", "loss"]
    assert pandas.DataFrame(run.evaluations())["loss"].min() == min(e.loss for e in run.evaluations())
    assert len(pandas.DataFrame(run.samples())) == len(run.samples())
    statistics = pandas.DataFrame(run.statistics("final_norm.gain"))
    assert statistics["step"].tolist() == [*range(0, 20, 2)]
    assert (statistics["weight_norm"] > 0).all()
