"""The forward pass of a report's page, run in node by the script that the page has, against torch's decoder."""

import json
import random
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import TINY, made_once, vitrine_in
from tests.model.test_decoder import VARIANTS, config_of, scrambled
from tests.studio.test_page import PAGE
from vitrine.config import ModelConfig
from vitrine.errors import RunError
from vitrine.families.registry import FAMILIES
from vitrine.model.decoder import Decoder
from vitrine.model.inventory import inventory
from vitrine.run import Run
from vitrine.runs.reader import RunReader
from vitrine.studio.report import parameters as carrying
from vitrine.studio.report.parameters import TRAITS, Parameters, read_parameters, to_bfloat16
from vitrine.text.portable import portable
from vitrine.text.tokenizer import byte_tokenizer, encode, train_bpe

NODE, NODE_SCRIPT = shutil.which("node"), Path(__file__).with_name("alive.mjs")
SCRIPTS = sorted(PAGE.parent.glob("assets/alive-*.js"))
pytestmark = pytest.mark.skipif(
    NODE is None or not SCRIPTS, reason="no node, or the page is not built (make page): its forward pass was NOT tested"
)

NEAR = 1e-4  # of logits: float32 adds up in another order, and 1e-5 was measured
SMALLER = ["model.context=19", "model.d_ff=37", "training.precision=float32"]
# What some families vary in their run, tokenizers of all kinds among it.
SETTINGS = {
    "llama": ["model.bias=true", "data.tokenizer=byte", "model.norm_epsilon=0.01"],
    "olmo2": ["data.tokenizer=bpe:300", "model.n_kv_heads=1"],
    "qwen2": ["model.n_kv_heads=1", "model.tie_embeddings=true", "data.tokenizer=bpe:400"],
    "qwen3": ["model.n_heads=3", "model.head_dim=10", "model.vocab_size=150", "model.rope_base=500"],
}
RUNS = {family: SETTINGS.get(family, []) for family in FAMILIES}
ODD = [
    "",
    " ",
    "  a",
    "don't they'll  say 12 34",
    "Zoë – 数 🙂🏽",
    "\t\n\r\n x",
    "a\x85b\ufeffc\u180e\u3000d",
    "<|endoftext|>",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, own_cache: Path, book_file: Path) -> Path:
    """A folder with a short run of each family."""

    def make(folder: Path) -> None:
        for family, settings in RUNS.items():
            chosen = [f"--set={pair}" for pair in (f"model.architecture={family}", *SMALLER, *settings)]
            vitrine_in(folder, "train", book_file, *TINY, *chosen, "--steps", 6, "--run", family, check=True)

    return made_once(tmp_path_factory, "alive", make)


def ask_page(folder: Path, *models: tuple[Parameters, ModelConfig, list[dict[str, Any]]], numbers="float32") -> list:
    """The answers of the page's own script for some models, each packed as in a report."""
    cases = []
    for number, (parameters, config, asked) in enumerate(models):
        file = folder / f"{number}.gz"
        file.write_bytes(parameters.packed(numbers))
        tensors = [{"name": tensor.name, "parameters": tensor.parameters} for tensor in inventory(config)]
        cases.append({"file": str(file), "tensors": tensors, "model": config.model_dump(), "asked": asked})
    (folder / "cases.json").write_text(json.dumps(cases))
    done = subprocess.run([NODE, NODE_SCRIPT, SCRIPTS[-1], folder / "cases.json"], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


@torch.no_grad()
def furthest(model: Decoder, answers: Sequence[dict], tokens: int) -> float:
    """How far the page's logits are from the decoder's, at most."""
    found = 0.0
    for answer in answers:
        ids = torch.tensor([answer["tokens"][-model.config.context :]])
        expected = model(ids)[0, -1, :tokens]
        assert len(answer["logits"]) == len(expected)
        found = max(found, float((torch.tensor(answer["logits"]) - expected).abs().max()))
    return found


def prompts(run: Run, text: str) -> list[str]:
    """A hundred: pieces of the text, shorter and longer than the context, and odd ones where the tokenizer has them."""
    draws = random.Random(1)
    starts = [draws.randrange(len(text) - 100) for _ in range(100)]
    odd = ODD if portable(run.tokenizer)["kind"] == "bytes" else ODD[:3]
    return [*odd, *(text[start : start + draws.randrange(1, 80)] for start in starts)][:100]


def test_the_page_has_the_logits_of_every_family_on_a_hundred_prompts(trained: Path, prose: str, tmp_path: Path):
    runs = [Run(trained / family) for family in RUNS]
    models = []
    for run in runs:
        parameters = read_parameters(RunReader(run.path), [0, 5, 6])
        assert parameters.steps == [0, 6]
        asked = [{"prompt": prompt, "step": 6 * (i % 4 > 0)} for i, prompt in enumerate(prompts(run, prose))]
        models.append((parameters, run.config.model, asked))
    for run, (_, _, asked), answers in zip(runs, models, ask_page(tmp_path, *models), strict=True):
        for wish, answer in zip(asked, answers, strict=True):
            assert answer["tokens"] == (encode(run.tokenizer, wish["prompt"]) or answer["tokens"][:1]), wish["prompt"]
        far = [
            furthest(run.model(step), [a for a in answers if a["step"] == step], run.tokenizer.get_vocab_size())
            for step in (0, 6)
        ]
        print(f"{run.path.name}: {far[0]:.1e} at initialisation, {far[1]:.1e} after training")
        assert max(far) < NEAR


def test_the_page_has_the_logits_of_every_variant_of_a_family(tmp_path: Path):
    tokenizer, models, decoders = portable(byte_tokenizer()), [], []
    for settings in VARIANTS.values():
        config = config_of(257, **settings)
        decoders.append(scrambled(config))
        tensors = dict(decoders[-1].named_parameters())
        values = np.concatenate([tensors[t.name].detach().numpy().ravel() for t in inventory(config)])
        family = {name: getattr(config.family, name) for name in TRAITS}
        asked = [{"prompt": "abcdefghijklmnopqrstuvwxyz"[: 3 * i], "step": 4} for i in range(5)]
        models.append((Parameters({4: values}, family, tokenizer), config, asked))
    far = {
        name: furthest(decoder, answers, 257)
        for name, decoder, answers in zip(VARIANTS, decoders, ask_page(tmp_path, *models), strict=True)
    }
    print(far)
    assert max(far.values()) < NEAR


def test_one_parameter_turned_is_that_parameter(trained: Path, tmp_path: Path):
    run = Run(trained / "qwen2")
    model, name, place = run.model(6), "blocks.1.mlp.gate.weight", 37
    parameters = read_parameters(RunReader(run.path), [0, 6])
    wish = {"prompt": "The ", "step": 6}
    turned = {"tensor": name, "place": place, "value": 3.5}
    [[plain, changed, again]] = ask_page(
        tmp_path, (parameters, run.config.model, [wish, wish | {"turned": turned}, wish])
    )
    assert plain["logits"] == again["logits"] != changed["logits"]
    with torch.no_grad():
        model.get_parameter(name).view(-1)[place] = 3.5
    assert furthest(model, [changed], run.tokenizer.get_vocab_size()) < NEAR


def test_the_page_writes_the_likeliest_text_past_the_end_of_the_context(trained: Path, tmp_path: Path):
    runs, asked = [Run(trained / family) for family in RUNS], [{"prompt": "They are ", "step": 6, "length": 60}]
    models = [(read_parameters(RunReader(run.path), [6]), run.config.model, asked) for run in runs]
    for run, [written] in zip(runs, ask_page(tmp_path, *models), strict=True):
        assert "They are " + written["text"] == run.generate("They are ", 60, 1, 6, temperature=0.0).text


def test_parameters_in_bfloat16_are_rounded_as_torch_rounds(trained: Path, tmp_path: Path):
    draws = np.random.default_rng(1)
    values = draws.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    values[:4] = np.nan, np.inf, -np.inf, 3.4e38
    rounded = (to_bfloat16(values).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(rounded, torch.from_numpy(values).bfloat16().float().numpy())
    run = Run(trained / "gpt2")
    parameters = read_parameters(RunReader(run.path), [0, 6])
    asked = [{"prompt": "The ", "step": 6}, {"prompt": "The statement", "step": 6}]
    [answers] = ask_page(tmp_path, (parameters, run.config.model, asked), numbers="bfloat16")
    model = run.model(6).bfloat16().float()
    assert furthest(model, answers, run.tokenizer.get_vocab_size()) < NEAR


def test_what_the_page_cannot_read_is_refused_in_a_sentence(trained: Path, tmp_path: Path):
    run = Run(trained / "gpt2")
    parameters = read_parameters(RunReader(run.path), [6])
    asked = [{"prompt": "☃", "step": 6}, {"prompt": "a\ud800", "step": 6}]
    [[unknown, half]] = ask_page(tmp_path, (parameters, run.config.model, asked))
    assert "has never seen '☃' (U+2603)" in unknown["refused"]
    assert "half of a character" in half["refused"]


def test_byte_pairs_are_merged_as_the_library_merges_them(prose: str, tmp_path: Path):
    tokenizer = train_bpe(iter([prose, "日本語 🙂🏽 Zoë"]), 700)
    config = config_of(tokenizer.get_vocab_size(), n_layers=1)
    values = np.zeros(sum(tensor.parameters for tensor in inventory(config)), np.float32)
    parameters = Parameters({0: values}, {name: getattr(config.family, name) for name in TRAITS}, portable(tokenizer))
    draws = random.Random(2)
    letters = "aeth  \n\t'sdl1٣日🙂\u0301ß\u3000\x85\ufeff–_"
    texts = ["".join(draws.choices(letters, k=draws.randrange(1, 40))) for _ in range(300)]
    texts += [prose[start : start + 60] for start in range(0, 6000, 60)]
    [answers] = ask_page(tmp_path, (parameters, config, [{"prompt": text, "step": 0} for text in texts]))
    assert [answer["tokens"] for answer in answers] == [encode(tokenizer, text) for text in texts]


def test_a_report_says_why_it_cannot_carry_the_parameters(trained: Path, monkeypatch: pytest.MonkeyPatch):
    reader = RunReader(trained / "gpt2")
    with pytest.raises(RunError, match="no sound keyframe"):
        read_parameters(reader, [])
    monkeypatch.setattr(carrying, "portable", lambda tokenizer: None)
    with pytest.raises(RunError, match="this run's tokenizer differs"):
        read_parameters(reader, [0, 6])
    monkeypatch.setattr(carrying, "MOST", 1000)
    with pytest.raises(RunError, match=r"up to 1,000 parameters: this one has [\d,]+\."):
        read_parameters(reader, [0, 6])
