"""What the pages say is so."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer.main

import vitrine as package
from tests.conftest import TINY
from vitrine.cli.main import app
from vitrine.config import SECTIONS, check_name
from vitrine.presets import PRESETS, Facts, resolve

HOUSE = Path(__file__).parents[1]
README = (HOUSE / "README.md").read_text(encoding="utf-8")
PAGES = [HOUSE / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((HOUSE / "docs").glob("*.md"))


def test_the_page_of_hyperparameters_is_what_the_code_has():
    made = runpy.run_path(str(HOUSE / "docs" / "hyperparameters.py"))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"](), "run `make docs`"
    required = {
        f"{section}.{key}"
        for section, fields in SECTIONS.items()
        for key, field in fields.model_fields.items()
        if field.is_required()
    }
    every = {f"{section}.{key}" for section, fields in SECTIONS.items() for key in fields.model_fields}
    assert required <= set(made["DERIVED"]) <= every


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


def commands(page: Path) -> list[str]:
    """The vitrine commands of a page: those in fenced blocks, and those in the running text."""
    text = page.read_text(encoding="utf-8").partition("\n## Every file\n")[0]  # which only names commands
    blocks = "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL))
    inline = re.findall(r"`((?:vitrine|torchrun) [^`]+)`", text)
    lines = [line.partition("  #")[0] for line in (*blocks.splitlines(), *inline)]
    return [line for line in lines if re.match(r"vitrine [a-z]|torchrun ", line)]


@pytest.mark.parametrize("command", sorted({command for page in PAGES for command in commands(page)}))
def test_every_command_of_the_pages_can_be_typed(command):
    words = shlex.split(command.partition("-m ")[2] if command.startswith("torchrun") else command)[1:]
    verb = typer.main.get_command(app).commands[words[0]]
    verb.make_context(words[0], list(words[1:]))
    for word in words:
        if re.fullmatch(r"\w+\.\w+=.*", word):
            check_name(word.partition("=")[0])


def test_the_readme_names_the_presets_with_their_true_sizes():
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) M \|$", README, re.MULTILINE)
    assert len(rows) == 5
    from vitrine.model.inventory import inventory

    for name, layers, width, context, millions in rows:
        model = resolve(PRESETS[name], Facts(vocab_size=65, train_tokens=10**6)).model
        assert (model.n_layers, model.d_model, model.context) == (int(layers), int(width), int(context))
        count = sum(tensor.parameters for tensor in inventory(model))
        assert float(millions) == round(count / 1e6, 1 if count < 2e7 else 0)


def test_the_readme_example_in_python_runs(book, tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    smaller = dict(word.split("=") for word in TINY if "=" in word)
    code = code.replace(
        "steps=500", f"steps=20, settings={{k: int(v) if v.isdigit() else v for k, v in {smaller}.items()}}"
    )
    found: dict[str, object] = {}
    exec(code, found)
    assert found["run"].generate("Once", max_new_tokens=5).text.startswith("Once")
    assert found["vitrine"] is package
