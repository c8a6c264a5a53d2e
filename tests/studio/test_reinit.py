"""The same model, initialised once more: by the library's own random numbers, on the run's own first batch."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file

from tests.studio.conftest import Studio
from vitrine.errors import RunError
from vitrine.inspection.reinit import reinitialise
from vitrine.inspection.replay import Replayer
from vitrine.model.decoder import Decoder
from vitrine.runs.reader import RunReader


@pytest.fixture(scope="module")
def reader(runs: Path) -> RunReader:
    return RunReader(runs / "small")


def initialised(studio: Studio, **body: object) -> dict:
    answer = studio.post("runs/small/births", **body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_runs_own_seed_gives_its_own_parameters_and_its_first_loss(studio: Studio, reader: RunReader):
    again = initialised(studio, seed=reader.config.training.seed)
    first = load_file(reader.path / "keyframes/step-00000000/model.safetensors")["blocks.0.attention.query.weight"]
    assert [float(f"{x:.9g}") for x in first[0, :6]] == pytest.approx(list(again["cells"].values()), rel=1e-7)
    assert next(iter(again["cells"])) == "blocks.0.attention.query.weight[0,0]"
    assert again["loss"] == reader.step_record(0).loss  # to the bit: the same batch, the same draws
    assert again["guessing_loss"] == math.log(reader.config.model.vocab_size)


def test_another_seed_gives_other_numbers_and_the_first_one_gives_them_back(studio: Studio):
    one, two, one_again = initialised(studio, seed=1), initialised(studio, seed=2), initialised(studio, seed=1)
    assert one["cells"] != two["cells"]
    assert one["loss"] != two["loss"]
    assert one == one_again


def test_without_spread_the_model_guesses_and_with_fifty_times_it_is_sure_of_nonsense(studio: Studio):
    none, wide = initialised(studio, seed=1, spread=0), initialised(studio, seed=1, spread=50)
    assert set(none["cells"].values()) == {0.0}
    assert none["loss"] == pytest.approx(none["guessing_loss"], abs=1e-6)
    assert wide["loss"] > 2 * wide["guessing_loss"]


def test_the_spread_moves_what_is_drawn_and_leaves_gains_at_one_and_biases_at_zero(reader: RunReader):
    batch = Replayer(reader).replay(0).micro_batches[0]
    model = Decoder(reader.config.model, getattr(torch, reader.config.training.precision))
    first = load_file(reader.path / "keyframes/step-00000000/model.safetensors")
    model.load_state_dict({name: torch.from_numpy(x * (2 if x.std() > 0 else 1)) for name, x in first.items()})
    logits = model(torch.from_numpy(batch.inputs.copy())).float()
    expected = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets.copy()).flatten())
    assert reinitialise(reader, reader.config.training.seed, 2.0).loss == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize(
    "body", [{"seed": -1}, {"seed": 1, "spread": -1}, {"seed": 1, "spread": 1e9}, {"seed": "x"}, {}]
)
def test_what_is_no_seed_or_no_spread_is_refused_in_a_sentence(studio: Studio, body: dict[str, object]):
    answer = studio.post("runs/small/births", **body)
    assert answer.status_code == 422
    assert answer.json()["error"]


def test_a_spread_below_zero_is_refused_by_the_library(reader: RunReader):
    with pytest.raises(RunError, match=r"spread must be a number from 0 up: got -2"):
        reinitialise(reader, seed=1, std_factor=-2)
