"""A run in a notebook, and the notebooks of examples/, run from their first cell to their last."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nbformat
import pytest
from nbclient import NotebookClient

from tests.exchange.test_huggingface import make_run
from vitrine import api, notebook
from vitrine.run import Run
from vitrine.runs.records import SampleRecord, StepRecord
from vitrine.runs.store import Store

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.opened.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


def drawing(page: str) -> ElementTree.Element:
    found = re.search(r"<svg.*</svg>", page, re.DOTALL)
    assert found
    return ElementTree.fromstring(found[0])


def with_history(path: Path, losses: list[float], text: str = "") -> Run:
    run = make_run(path)
    with Store(path / "run.sqlite") as store:
        for step, loss in enumerate(losses):
            store.write(StepRecord(step, loss, 1.0, 0.1, 10 * (step + 1), 0.1, 1000))
        if text:
            store.write(SampleRecord(len(losses), "", text, 0.8, 1))
    return run


def test_a_trained_run_shows_its_curves_its_text_and_what_was_chosen(book: Path, tmp_path: Path) -> None:
    size = {"model.n_layers": 1, "model.d_model": 16, "model.n_heads": 1, "model.context": 16, "training.batch_size": 2}
    run = api.train(book, run=tmp_path / "a run", steps=30, settings=size | {"data.tokenizer": "char"})
    page = run._repr_html_()
    seen = read(page)
    assert run.samples()[-1].text.strip() in seen.text
    assert "learning_rate = 0.03" in seen.text
    assert f"vitrine studio '{tmp_path}/a run'" in seen.text
    measured = run.sampled_evaluations()
    assert f"best validation loss {min(e.loss for e in measured):.4f}" in seen.text
    assert "30 of 30 steps made" in repr(run)
    assert f"guessing: ln {run.config.model.vocab_size}" in seen.text
    svg = drawing(page)
    assert len(svg.findall(".//circle")) == len(measured)
    line = next(path.get("d") for path in svg.findall("path") if path.get("stroke-opacity") == ".75")
    points = [tuple(map(float, point.split(","))) for point in re.findall(r"[ML]([\d.]+,[\d.]+)", line or "")]
    losses = [record.loss for record in run.steps()]
    assert len(points) == len(losses)
    heights = [y for _, y in points]
    assert heights[losses.index(max(losses))] == min(heights)  # up in the picture is a high loss
    slope = (heights[0] - heights[-1]) / (losses[0] - losses[-1])
    assert heights == pytest.approx([heights[0] + slope * (loss - losses[0]) for loss in losses], abs=0.1)


def test_what_a_model_wrote_and_what_a_folder_is_called_cannot_act_in_the_page(tmp_path: Path) -> None:
    evil = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>"
    run = with_history(tmp_path / "<img src=x onerror='alert(3)'>", [3.0, 2.0], evil)
    seen = read(run._repr_html_())
    assert not {"script", "img", "a", "iframe", "link"} & set(seen.opened)
    assert evil in seen.text
    assert "<img src=x onerror='alert(3)'>" in seen.text


@pytest.mark.parametrize(
    "losses", [[], [3.0], [2.0, 2.0], [3.0, math.nan, 2.0, math.inf], [math.nan], [1e30, 4.0], [0.0, 0.0]]
)
def test_any_history_gives_a_picture_or_says_that_there_is_none(losses: list[float], tmp_path: Path) -> None:
    run = with_history(tmp_path / "run", losses)
    with Store(run.path / "run.sqlite") as store:
        store.connection.execute("DELETE FROM evaluations")
    page = run._repr_html_()
    if not any(map(math.isfinite, losses)):
        assert "No loss is recorded" in page
        return
    assert "nan" not in page.partition("<svg")[2].partition("</svg>")[0]
    assert "inf" not in page.partition("<svg")[2].partition("</svg>")[0]
    assert drawing(page) is not None


@pytest.mark.parametrize(("least", "most"), [(0, 1), (0, 3), (1.7, 4.2), (0, 100_000), (2.0, 2.001)])
def test_the_numbers_on_an_axis_are_round_and_few(least: float, most: float) -> None:
    found = notebook._round_values(least, most)
    assert 2 <= len(found) <= 7
    assert least <= found[0]
    assert found[-1] <= most
    apart = found[1] - found[0]
    assert round(apart / 10 ** math.floor(math.log10(apart) + 1e-9), 6) in (1, 2, 5)


# The examples


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))


def run_notebook(name: str, folder: Path) -> list[str]:
    """What each code cell gave, as text."""
    book = nbformat.read(EXAMPLES / name, as_version=4)
    NotebookClient(book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    given = []
    for cell in book.cells:
        if cell.cell_type == "code":
            texts = [
                output.get("text") or output.data.get("text/html") or output.data["text/plain"]
                for output in cell.outputs
            ]
            given.append("\n".join(texts))
    return given


@pytest.mark.full
def test_the_notebook_on_parameters_shows_one_and_a_step_that_is_exact(tmp_path: Path) -> None:
    shown = run_notebook("parameters.ipynb", tmp_path)
    assert "<svg" in shown[0]
    assert "blocks.0.attention.query.weight" in shown[1]
    assert "step 60" in shown[2]
    assert "exactly as it was: True" in shown[3]
    assert shown[4].strip() == "True"
    assert len(shown[6]) > 200
    assert [file.name for file in tmp_path.iterdir()] == ["temporary"]


@pytest.mark.full
def test_the_notebook_on_transformers_has_the_same_logits_text_and_digest_there(tmp_path: Path) -> None:
    shown = run_notebook("transformers.ipynb", tmp_path)
    assert "'model.safetensors'" in shown[1]
    assert shown[2].strip().endswith("'Qwen3ForCausalLM'")
    assert float(shown[3].strip().rpartition(" ")[2]) < 1e-4
    assert shown[4].strip().endswith("True")
    assert shown[5].strip().endswith("True")


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda file: file.name)
def test_the_notebooks_are_kept_without_what_a_run_of_them_left(file: Path) -> None:
    book = nbformat.read(file, as_version=4)
    nbformat.validate(book)
    for cell in book.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
