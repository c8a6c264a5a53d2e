"""examples/one_file.py, which imports nothing of Vitrine, trains the same parameters as Vitrine, to the bit."""

import ast
import json
import re
import sys
from pathlib import Path
from runpy import run_path

import pytest
import torch

FILE = Path(__file__).parents[1] / "examples" / "one_file.py"
# Its options, and what Vitrine calls them.
CASES = {
    "muon": ({}, {}),
    "adamw": (
        {"optimizer": "adamw", "adamw_learning_rate": 0.002, "weight_decay": 0.1, "beta1": 0.9, "epsilon": 1e-8,
         "warmup_steps": 5},
        {"optimizer.name": "adamw", "optimizer.learning_rate": 0.002, "optimizer.betas": "[0.9, 0.95]",
         "optimizer.epsilon": 1e-8, "optimizer.weight_decay": 0.1, "schedule.warmup_steps": 5},
    ),
    "odd sizes, and muon with weight decay and without clipping": (
        {"n_layers": 3, "n_heads": 4, "d_model": 48, "d_ff": 100, "context": 33, "batch_size": 3, "weight_decay": 0.1,
         "seed": 7, "clip": 0.0},
        {"model.n_layers": 3, "model.n_heads": 4, "model.d_model": 48, "model.d_ff": 100, "model.context": 33,
         "training.batch_size": 3, "optimizer.weight_decay": 0.1, "optimizer.adamw_learning_rate": 0.014142,
         "training.seed": 7, "optimizer.clip": 0.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_fifty_steps_of_the_one_file_and_of_train_have_the_same_digest(case, vitrine, book, monkeypatch, capsys):
    options, settings = CASES[case]
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["one_file.py", str(book), "--steps", "50", *words])
    run_path(str(FILE), run_name="__main__")
    (digest,) = re.findall(r"digest ([0-9a-f]{64})", capsys.readouterr().out)
    fixed = {
        "training.precision": "float32",
        "machine.threads": 1,
        "data.tokenizer": "char",
        "recording.enabled": False,
    }
    given = [f"--set={name}={value}" for name, value in (fixed | settings).items()]
    made = vitrine("train", book, "--preset", "nano", "--steps", 50, *given, "--json", check=True)
    assert json.loads(made.stdout)["digest"] == digest


def test_it_stays_a_lesson():
    code = FILE.read_text(encoding="utf-8")
    assert len(code.splitlines()) <= 350
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(code))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert imported - sys.stdlib_module_names == {"torch", "numpy"}


@pytest.mark.parametrize("only_the_best", [{"temperature": 0.0}, {"temperature": 5.0, "top_k": 1}, {"top_p": 1e-6}])
def test_where_only_the_likeliest_is_left_it_is_written(only_the_best, book):
    lesson = run_path(str(FILE))
    hyper = lesson["Hyperparameters"](steps=5, seed=3, **only_the_best)
    alphabet, learned, _ = lesson["read"](book)
    model = lesson["train"](learned, len(alphabet), hyper)
    tokens = [alphabet.index(character) for character in "The"]
    with torch.no_grad():
        for _ in range(20):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert lesson["write"](model, alphabet, "The", 20, hyper) == "".join(alphabet[token] for token in tokens)
