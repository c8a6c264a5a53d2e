"""A run that an older revision made opens in every command, and says what was recorded then."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import unpack_old_run
from vitrine.studio.report.html import PAGE

LOSS = 2.982443551007065
DIGEST = "fbbaae2ceec3fb972cafdb96bc5cf34e725b36fcc08fc83f738985286bb65403"
PARAMETERS = 4928
GAIN = "final_norm.gain[3]"
MACHINE = r"(torch|device_name|instructions): .+ then, .+ now"  # all that may keep a replay from being exact


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return unpack_old_run(tmp_path)


def is_excused(differs: list[str]) -> bool:
    return any(re.fullmatch(MACHINE, line) for line in differs)


@pytest.fixture
def answer(vitrine, old: Path):
    """What a command about the old run prints as JSON."""

    def ask(command: str, *arguments: object, status: tuple[int, ...] = (0,)) -> dict:
        done = vitrine(command, old, *arguments, "--json")
        assert done.returncode in status, done.stderr
        return json.loads(done.stdout)

    return ask


def test_it_writes(answer):
    written = answer("generate", "--prompt", "The ", "--max-new-tokens", 12)
    assert (written["prompt"], written["tokens"], len(written["text"])) == ("The ", 12, 16)


def test_its_held_back_text_has_the_loss_that_was_recorded(answer):
    found = answer("evaluate")
    assert found["tokens"] == 1199
    assert found["loss"] == pytest.approx(LOSS, rel=1e-5)  # float32 sums in another order on another processor


def test_it_is_inspected_whole_by_parameter_and_by_neuron(answer):
    whole = answer("inspect")
    assert (whole["parameters"], whole["step"]) == (PARAMETERS, 19)
    life = answer("inspect", GAIN, "--step", 7)
    assert life["birth"] == 1
    assert life["before"] == pytest.approx(1.0952182, rel=1e-4)
    assert len(life["history"]) >= 20
    assert answer("inspect", "blocks.0.mlp.expand[5]", "--step", 7)["neuron"] == "blocks.0.mlp.expand[5]"


@pytest.mark.parametrize("step", [0, 12, 19])
def test_its_steps_are_replayed_to_the_bit_unless_the_machine_differs(answer, step: int):
    found = answer("replay", "--step", step)
    assert (found["step"], found["loss"]["value"]) == (step, pytest.approx(found["loss"]["recorded"], rel=1e-4))
    assert found["exact"] == (not found["differs"])
    assert found["exact"] or is_excused(found["differs"])


def test_it_is_verified_all_but_the_bits_of_another_machine(answer):
    found = answer("verify", status=(0, 1))
    checks = {check["what"]: check for check in found["checks"]}
    sound = ["keyframe 0", "keyframe 10", "keyframe 20", "run.sqlite", "history", "film"]
    assert all(checks[name]["held"] for name in sound)
    assert found["held"] or is_excused(answer("replay", "--step", 12)["differs"])
    assert all("replayed" in check["what"] for check in found["checks"] if not check["held"])


def test_its_health_is_judged(answer):
    levels = {verdict["name"]: verdict["level"] for verdict in answer("health")["verdicts"]}
    assert levels["loss at birth"] == "ok"
    assert levels["loss spikes"] == "ok"
    assert levels["stalled learning"] == "unknown"  # for so few steps


def test_it_stands_beside_another(vitrine, old: Path, small: Path):
    done = vitrine("compare", old, small, "--json")
    (mine, _), _ = (found := json.loads(done.stdout))["runs"], found["differs"]
    assert (mine["result"]["val_loss"], mine["result"]["digest"]) == (LOSS, DIGEST)
    assert mine["loss"]["steps"] == list(range(20))
    assert {"model.n_layers", "model.d_model"} <= {row["key"] for row in found["differs"]}
    assert vitrine("compare", old, small).returncode == 0


@pytest.mark.skipif(not (PAGE / "index.html").is_file(), reason="the page is not built (make page)")
def test_a_report_of_it_is_written(answer, tmp_path: Path):
    found = answer("report", "--steps", "birth,12", "--out", tmp_path / "old.html")
    assert (found["steps"], found["frames"], found["cells"]) == ([0, 12], 6, PARAMETERS)
    assert (tmp_path / "old.html").stat().st_size == found["size_bytes"]


@pytest.mark.parametrize("target_format", ["hf", "gguf"])
def test_it_is_exported(answer, vitrine, tmp_path: Path, target_format: str):
    found = answer("export", tmp_path / "out", "--format", target_format)
    assert (found["step"], found["parameters"], found["digest"]) == (20, PARAMETERS, DIGEST)
    if target_format == "hf":
        again = json.loads(vitrine("import", "out", "--run", "again", "--json").stdout)
        assert again["parameters"] == PARAMETERS


def test_resumed_after_its_end_it_says_that_it_has_ended_and_how(vitrine, old: Path):
    done = vitrine("resume", old, "--json")
    assert (done.returncode, done.stderr.strip().startswith(f"{old} has ended already, at step 20.")) == (0, True)
    assert {key: json.loads(done.stdout)[key] for key in ("val_loss", "digest")} == {"val_loss": LOSS, "digest": DIGEST}
    assert "validation loss 2.9824" in vitrine("resume", old).stdout


def test_a_training_goes_on_from_one_of_its_keyframes(vitrine, old: Path, tmp_path: Path):
    (tmp_path / "text.txt").write_text("the text of another run, of letters that it knows. " * 100)
    vitrine("train", "text.txt", "--from", "old@10", "--steps", 2, "--run", "child", check=True)
    born = json.loads((tmp_path / "child/keyframes/step-00000000/manifest.json").read_text())
    assert born["digest"] == json.loads((old / "keyframes/step-00000010/manifest.json").read_text())["digest"]
