"""All about a parameter: its rule gives its update, its history is true, its gradient keeps its promise."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.apple import NAME, Gpu
from tests.conftest import TINY, made_once, vitrine_in
from tests.exchange.test_huggingface import make_run
from vitrine.errors import RunError
from vitrine.families.registry import FAMILIES
from vitrine.inspection.gradient_check import Float64, check_gradient
from vitrine.inspection.neuron import open_neuron
from vitrine.inspection.parameter import Address, connects, explain_update, find_address, history_of, report_parameter
from vitrine.inspection.replay import Replayer
from vitrine.inspection.views import inspect
from vitrine.model.inventory import inventory
from vitrine.runs.film import Film
from vitrine.runs.reader import RunReader
from vitrine.text.tokenizer import encode, load_tokenizer

STEPS = 12
RULES = {
    "sgd": ["optimizer.name=sgd", "optimizer.learning_rate=0.3", "optimizer.clip=0.1"],
    "sgd, momentum and decay": ["optimizer.name=sgd", "optimizer.momentum=0.9", "optimizer.weight_decay=0.05"],
    "adamw": ["optimizer.name=adamw", "optimizer.weight_decay=0.1", "model.architecture=gpt2"],
    "lion": ["optimizer.name=lion", "optimizer.weight_decay=0.1"],
    "muon": ["optimizer.name=muon", "training.precision=bfloat16"],
    "muon and decay": ["optimizer.name=muon", "optimizer.weight_decay=0.1", "model.architecture=llama"],
}


@pytest.fixture(scope="module", params=RULES)
def replayed(request, tmp_path_factory, prose):
    """Step 7 of a run by each rule."""
    run = train(tmp_path_factory, prose, *RULES[request.param])
    return Replayer(RunReader(run)).replay(7)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory, prose) -> Path:
    """The same model, with matrix products in bfloat16."""
    return train(tmp_path_factory, prose, *RULES["adamw"], "training.precision=bfloat16")


@pytest.fixture(scope="module")
def run(tmp_path_factory, prose) -> Path:
    """A gpt2, which has every kind of parameter, with AdamW, in float32."""
    return train(tmp_path_factory, prose, *RULES["adamw"], "recording.film_frames=6")


def test_the_rules_terms_come_to_the_update(replayed):
    """Within one rounding of the parameter, and 1e-5 of the update."""
    for address in some_addresses(replayed, 150):
        tensor = replayed.tensor(address.tensor.name)
        before, update = tensor.before[address.index], float(tensor.update[address.index])
        total = explain_update(replayed, address).total
        assert abs(total - update) <= np.spacing(np.abs(before)) + 1e-5 * abs(update), address.text


def test_each_term_has_words_and_the_main_ones_are_terms(replayed):
    optimizer, words = replayed.optimizer, type(replayed.optimizer).term_words
    seen = set()
    for address in some_addresses(replayed, 20):
        seen |= explain_update(replayed, address).terms.keys()
    assert seen <= words.keys()
    assert set(optimizer.main_terms) <= words.keys()


def test_plain_sgd_is_the_learning_rate_times_the_clipped_gradient(replayed):
    for address in some_addresses(replayed, 20):
        found = report_parameter(replayed, address)
        assert found.plain_sgd == pytest.approx(-replayed.learning_rate * replayed.clip_factor * found.gradient)
        if found.rule.optimizer == "sgd" and "momentum" not in found.rule.terms:
            assert found.rule.terms["step"] == pytest.approx(found.plain_sgd, rel=1e-6)


def test_muons_direction_says_that_it_depends_on_the_whole_matrix(replayed):
    address = find_address(replayed.reader, "blocks.0.mlp.shrink.weight[1,2]")
    rule = explain_update(replayed, address)
    if rule.optimizer == "muon":
        assert "orthogonalised_direction" in rule.terms
        assert "whole matrix" in rule.note
    else:
        assert "orthogonalised_direction" not in rule.terms


def test_where_the_device_has_no_float64_a_nudge_is_computed_on_the_processor(run, monkeypatch):
    replayed = Replayer(RunReader(run)).replay(7)
    expected = Float64(replayed).loss()
    with Gpu():
        there = SimpleNamespace(
            config=replayed.config,
            parameters=replayed.parameters,
            values=replayed.values.to(NAME),
            micro_batches=[SimpleNamespace(micro=batch.micro.to(NAME)) for batch in replayed.micro_batches],
        )
        with pytest.raises(TypeError, match="no float64"):
            Float64(there)
        monkeypatch.setattr("vitrine.model.loss.WITHOUT_FLOAT64", (NAME,))
        assert torch.equal(Float64(there).loss(), expected)


def test_a_nudge_changes_the_loss_as_the_gradient_promised(run):
    replayed = Replayer(RunReader(run)).replay(7)
    for name in ("blocks.1.mlp.expand.weight[5,3]", "blocks.0.attention.value.bias[4]", "final_norm.gain[2]"):
        found = check_gradient(replayed, find_address(replayed.reader, name), (1e-4, -1e-4))
        slope = (found.losses[0] - found.losses[1]) / 2e-4
        assert slope == pytest.approx(found.gradient, rel=1e-5, abs=1e-10)
        assert found.run_gradient == pytest.approx(found.gradient, rel=1e-3, abs=1e-8)
        assert found.loss == pytest.approx(replayed.loss, rel=1e-6)


def test_a_neurons_products_and_bias_add_up_to_its_output(run):
    replayed = Replayer(RunReader(run)).replay(7)
    for layer in ("blocks.0.mlp.expand", "blocks.1.attention.query", "blocks.1.mlp.shrink"):
        neuron = open_neuron(replayed, find_address(replayed.reader, f"{layer}[5]"), row=1, token=9)
        assert neuron.total == pytest.approx(neuron.output, rel=1e-4, abs=1e-5)
        kept = replayed.tensor(f"{layer}.weight").before[5]
        assert neuron.weights.tobytes() == kept.tobytes()
        assert neuron.bias == replayed.tensor(f"{layer}.bias").before[5]
        assert neuron.products_in == "float32"
        assert np.array_equal(neuron.multiplied, neuron.weights)


def test_in_bfloat16_a_neuron_has_the_exact_weights_and_the_products_of_the_rounded_ones(narrow):
    replayed = Replayer(RunReader(narrow)).replay(7)
    found = open_neuron(replayed, find_address(replayed.reader, "blocks.0.mlp.expand[5]"), row=1, token=9).to_json()
    kept = replayed.tensor("blocks.0.mlp.expand.weight").before[5]
    assert np.array_equal(np.array(found["weights"], np.float32), kept)
    rounded = torch.from_numpy(kept).bfloat16().double().numpy()
    assert not np.array_equal(rounded, kept)
    assert found["products_in"] == "bfloat16"
    assert found["products"] == (np.array(found["inputs"], np.float32).astype(np.float64) * rounded).tolist()
    assert found["total"] == pytest.approx(sum(found["products"]) + found["bias_added"], abs=1e-7)
    assert found["bias"] == replayed.tensor("blocks.0.mlp.expand.bias").before[5] != found["bias_added"]
    assert found["output"] == pytest.approx(found["total"], rel=2**-8, abs=1e-6)


@pytest.mark.parametrize(("step", "token"), [(None, None), (STEPS, 2), (5, -2), (0, 0)])
def test_a_neuron_reads_a_prompt_at_any_step_and_at_the_end_of_the_run(run, step, token):
    reader, prompt = RunReader(run), "the map of"
    found = inspect(reader, "blocks.1.mlp.expand[3]", step, token=token, prompt=prompt).to_json()
    at = STEPS if step is None else step
    replayer = Replayer(reader)
    replayer.go_to(at)
    ids = encode(load_tokenizer(run / "tokenizer.json"), prompt)
    place = len(ids) - 1 if token is None else token % len(ids)
    assert (found["step"], found["token"], found["prompt"], found["exact"]) == (at, place, prompt, True)
    seen = []
    layer = replayer.decoder.blocks[1].mlp.expand
    layer.register_forward_hook(lambda _, given, answer: seen.append((given[0], answer)))
    with torch.no_grad():
        replayer.decoder(torch.tensor([ids]))
    inputs, outputs = seen[0]
    assert np.array_equal(np.float32(found["inputs"]), inputs[0, place].numpy())
    assert np.float32(found["output"]) == outputs[0, place, 3].item()
    assert found["total"] == pytest.approx(found["output"], rel=1e-4, abs=1e-5)


def test_a_prompt_is_only_for_a_neuron_and_has_no_other_tokens(run):
    with pytest.raises(RunError, match=r"--prompt is for a neuron: name one, .*\. Got 'final_norm.gain'\."):
        inspect(RunReader(run), "final_norm.gain", prompt="the")
    with pytest.raises(RunError, match=r"--token must be 0 to \d+ in this prompt: got 99\."):
        inspect(RunReader(run), "blocks.1.mlp.expand[3]", prompt="the", token=99)


def test_the_history_has_keyframes_and_the_sample_exactly_and_the_film_nearly(run):
    reader = RunReader(run)
    layout, film = reader.layout(), Film(run / "film")
    name = "blocks.0.mlp.expand.weight"
    shape = next(plan.shape for plan in inventory(reader.config.model) if plan.name == name)
    sampled = layout.sample[name][0]
    picked = next(int(place) for place in film.values.indices[name].ravel() if int(place) not in layout.sample[name])
    for place, steps in ((sampled, STEPS), (picked, 0)):
        address = Address(next(p for p in inventory(reader.config.model) if p.name == name), divmod(place, shape[1]))
        history = history_of(reader, address)
        exact = {step: value for step, value, is_exact in history if is_exact}
        assert len(exact) >= max(steps, 3)
        for step in (0, 5, 10, 12):
            kept = load_file(run / f"keyframes/step-{step:08d}/model.safetensors")[name]
            assert exact[step] == kept[address.index]
        if not steps:
            truth = Replayer(reader)
            for step, value, is_exact in history:
                if not is_exact:
                    true = float(truth.replay(step).tensor(name).before[address.index])
                    spread = np.abs(truth.replay(step).tensor(name).before - load_initial(run)[name]).max()
                    assert abs(value - true) <= spread / 250


def test_inspect_prints_what_scripts_need(run, vitrine):
    name = "blocks.0.attention.query.weight[3,7]"
    found = json.loads(vitrine("inspect", run, name, "--step", 6, "--nudge", "1e-3", "--json").stdout)
    assert (found["parameter"], found["kind"], found["step"], found["exact"]) == (name, "weight", 6, True)
    assert found["rule"]["optimizer"] == "adamw"
    assert {"first_moment", "second_moment", "decay", "step"} <= set(found["rule"]["terms"])
    replayed = Replayer(RunReader(run)).replay(6)
    tensor = replayed.tensor("blocks.0.attention.query.weight")
    for field in ("before", "gradient", "update", "after"):
        assert np.float32(found[field]) == getattr(tensor, field)[3, 7]
        assert len(repr(found[field])) <= 15  # the shortest digits that give the float32 back
    assert np.float32(found["birth"]) == load_initial(run)["blocks.0.attention.query.weight"][3, 7]
    assert found["history"][0] == [0, found["birth"], True]
    assert found["nudge"]["moves"][0]["size"] == 1e-3
    assert [6, found["before"], True] in found["history"]
    assert [7, found["after"], True] in found["history"]


def test_inspect_shows_the_census_a_tensor_and_a_neuron(run, vitrine):
    whole = json.loads(vitrine("inspect", run, "--step", 5, "--json").stdout)
    assert whole["parameters"] == sum(tensor["parameters"] for tensor in whole["tensors"])
    tensor = json.loads(vitrine("inspect", run, "blocks.1.mlp.shrink.weight", "--step", 5, "--json").stdout)
    recorded = next(t for t in whole["tensors"] if t["name"] == "blocks.1.mlp.shrink.weight")
    assert tensor["gradient"]["norm"] == pytest.approx(recorded["gradient_norm"], rel=1e-5)
    neuron = json.loads(vitrine("inspect", run, "blocks.1.mlp.shrink[3]", "--step", 5, "--token", 4, "--json").stdout)
    assert sum(neuron["products"]) + neuron["bias"] == pytest.approx(neuron["total"])
    for arguments in ((), ("blocks.1.mlp.shrink.weight",), ("blocks.1.mlp.shrink[3]",), ("positions.weight[2,3]",)):
        done = vitrine("inspect", run, *arguments)
        assert done.returncode == 0, done.stderr
        assert "nan" not in done.stdout


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_of_every_family_is_told_in_words(family, tmp_path):
    reader = RunReader(make_run(tmp_path / "run", architecture=family).path)
    for tensor in reader.tensors:
        words = connects(reader, Address(tensor, (1,) * len(tensor.shape)))
        assert re.search(r"channel|unit", words), tensor.name
        assert (f" in block {tensor.block}" in words) == (tensor.block is not None), tensor.name
        assert not re.search(r"\b(norm|None)\b", words), tensor.name


def test_norms_after_a_branch_and_gains_over_all_heads_are_told_as_such(tmp_path):
    reader = RunReader(make_run(tmp_path / "run", architecture="olmo2").path)
    told = {name: connects(reader, find_address(reader, f"blocks.1.{name}.gain[7]")) for name in
            ("post_attention_norm", "post_mlp_norm", "attention.query_norm")}  # fmt: skip
    assert told == {
        "post_attention_norm": "factor on channel 7 of what the attention in block 1 adds to the residual stream",
        "post_mlp_norm": "factor on channel 7 of what the mlp in block 1 adds to the residual stream",
        "attention.query_norm": "factor on channel 1 of head 1's query in block 1",
    }
    value = connects(reader, find_address(reader, "blocks.0.attention.value.weight[1,2]"))
    assert value == "from channel 2 of the residual stream to channel 1 of head 0's value in block 0"


def test_a_parameter_is_told_in_words(run):
    reader = RunReader(run)
    assert "tied" in connects(reader, find_address(reader, "embedding.weight[3,1]"))
    query = connects(reader, find_address(reader, "blocks.1.attention.query.weight[17,5]"))
    assert query == "from channel 5 of the normalised residual stream to channel 1 of head 1's query in block 1"


@pytest.mark.parametrize(
    ("what", "answer"),
    [
        ("blocks.0.attention.quary.weight[0,0]", "Did you mean blocks.0.attention.query.weight?"),
        ("blocks.0.attention.query.weight[0]", r"needs 2 numbers \(0 to 31, 0 to 31\)"),
        ("blocks.0.attention.query.weight[0,32]", r"needs 2 numbers \(0 to 31, 0 to 31\)"),
        ("blocks.0.mlp.expand[4000]", "there is none with the number 4000"),
        ("final_norm[0]", "There is no tensor final_norm"),
        ("embedding[3]", "not a linear layer"),
        ("blocks[", "A parameter is named like"),
    ],
)
def test_an_address_that_leads_nowhere_is_refused_in_a_sentence(what, answer, run):
    with pytest.raises(RunError, match=answer):
        inspect(RunReader(run), what)


def some_addresses(replayed, count: int) -> list[Address]:
    """Parameters of all tensors, and more of the large ones."""
    plans, draws = inventory(replayed.config.model), np.random.default_rng(5)
    sizes = np.array([plan.parameters for plan in plans], float)
    chosen = [*plans, *(plans[i] for i in draws.choice(len(plans), count, p=sizes / sizes.sum()))]
    return [Address(plan, tuple(int(draws.integers(size)) for size in plan.shape)) for plan in chosen]


def load_initial(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "keyframes/step-00000000/model.safetensors")


def train(factory: pytest.TempPathFactory, prose: str, *settings: str) -> Path:
    def make(folder: Path) -> None:
        (folder / "book.txt").write_text(prose)
        given = [part for setting in ("training.precision=float32", *settings) for part in ("--set", setting)]
        command = ["train", "book.txt", *TINY, *given, "--steps", str(STEPS), "--run", "r"]
        vitrine_in(folder, *command, check=True)

    return made_once(factory, "-".join(["parameter", *settings]), make) / "r"


def test_the_model_in_float64_is_the_same_model(run):
    replayed = Replayer(RunReader(run)).replay(3)
    exact = Float64(replayed)
    batch = replayed.micro_batches[0]
    with torch.no_grad():
        logits = exact.model(batch.micro.inputs, batch.micro.dropout_keys)
    assert logits.dtype == torch.float64
    assert np.abs(logits.numpy() - batch.logits).max() < 1e-5
