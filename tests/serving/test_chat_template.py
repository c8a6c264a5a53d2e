"""A chat template stays with its tokenizer: in a Hugging Face folder, in a run, and in the runs that start from it."""

import json
from pathlib import Path

import pytest

from tests.exchange.test_huggingface import folder_of, make_run, opened_by_transformers
from vitrine import api
from vitrine.exchange import hf_export, hf_import

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")

TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


def test_a_chat_template_goes_along_both_ways_and_to_who_is_trained_further(tmp_path: Path, book: Path) -> None:
    run = make_run(tmp_path / "run")
    (run.path / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    hf_export.export_run(run.path, tmp_path / "out")
    assert opened_by_transformers(tmp_path / "out")[1].chat_template == TEMPLATE
    hf_import.import_run(str(tmp_path / "out"), str(tmp_path / "back"))
    child = api.train(
        book, parent=f"{tmp_path / 'back'}@0", steps=1, run=tmp_path / "child", settings={"training.batch_size": 1}
    )
    for path in (tmp_path / "back", child.path):
        assert (path / "chat_template.jinja").read_text(encoding="utf-8") == TEMPLATE


@pytest.mark.parametrize("many", [False, True])
def test_a_chat_template_in_the_tokenizers_config_is_found(many: bool, tmp_path: Path) -> None:
    folder, named = folder_of(tmp_path), [{"name": "tools", "template": "?"}, {"name": "default", "template": TEMPLATE}]
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["chat_template"] = named if many else TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    hf_import.import_run(str(folder), str(tmp_path / "back"))
    assert (tmp_path / "back" / "chat_template.jinja").read_text(encoding="utf-8") == TEMPLATE
