"""Any past step, replayed: the bits that training had, and the proof of it. Seeded faults are caught."""

import json
import shutil
import sqlite3
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file

import vitrine as package
from tests.conftest import TINY, made_once, vitrine_in
from tests.warm import Python, Vitrine
from vitrine.errors import RunError
from vitrine.inspection.replay import Replayer
from vitrine.inspection.step_report import StepReport, report_step
from vitrine.runs.reader import RunReader
from vitrine.text.tokenizer import byte_tokenizer, train_bpe
from vitrine.training.device import ARITHMETIC

STEPS = 24
HARD = ["--set", "model.dropout=0.1", "--set", "training.accumulation=2", "--set", "recording.statistics_every=1"]
KINDS = {
    "muon, qwen3, bf16": ["--set", "optimizer.name=muon", "--set", "training.precision=bfloat16"],
    "adamw, gpt2, float32": [
        *["--set", "optimizer.name=adamw", "--set", "model.architecture=gpt2"],
        *["--set", "training.precision=float32"],
    ],
    "sgd, llama, float32": [
        *["--set", "optimizer.name=sgd", "--set", "optimizer.momentum=0.9", "--set", "optimizer.weight_decay=0.01"],
        *["--set", "model.architecture=llama", "--set", "training.precision=float32", "--set", "optimizer.clip=0.5"],
        *[
            "--set",
            "model.head_dim=6",
            "--set",
            "model.vocab_size=130",
        ],  # narrower than its share; more rows than tokens
    ],
    "lion, qwen2, float32": [
        *["--set", "optimizer.name=lion", "--set", "model.architecture=qwen2", "--set", "training.precision=float32"],
    ],
    "muon, olmo2, bf16": [
        *["--set", "model.architecture=olmo2", "--set", "model.n_kv_heads=1", "--set", "training.precision=bfloat16"],
    ],
}


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory, prose) -> Path:
    """A run of 24 steps with keyframes every 5, of each kind."""
    return _train(tmp_path_factory, prose, request.param)


@pytest.fixture(scope="module")
def one(tmp_path_factory, prose) -> Path:
    return _train(tmp_path_factory, prose, "muon, qwen3, bf16")


@pytest.fixture
def copy(one, tmp_path) -> Path:
    """A run that may be damaged."""
    shutil.copytree(one, tmp_path / "r")
    return tmp_path / "r"


def test_every_step_is_replayed_on_the_bits_that_training_had(run):
    replayer = Replayer(RunReader(run))
    for number in (23, 0, 4, 5, 17, 18):
        replayed = replayer.replay(number)
        assert replayed.exact, replayed.comparisons.differs
        assert (replayed.loss, replayed.gradient_norm) == (replayed.recorded_loss, replayed.recorded_gradient_norm)
        assert replayed.update_norm == replayed.recorded_update_norm
        kinds = replayed.comparisons.kinds
        assert {"loss", "gradient norm", "learning rate", "keyframe", "optimizer state of the keyframe"} <= set(kinds)
        assert "norms, magnitudes and sampled parameters of every tensor" in kinds


def test_after_a_step_is_before_the_next_one_to_the_bit(run):
    replayer = Replayer(RunReader(run))
    this, following = replayer.replay(11), replayer.replay(12)
    for name, tensor in this.tensors.items():
        assert tensor.after.tobytes() == following.tensor(name).before.tobytes()
        for kind, memory in tensor.memory_after.items():
            assert memory.tobytes() == following.tensor(name).memory_before[kind].tobytes()


def test_the_values_of_a_step_are_those_of_its_keyframe(run):
    replayed = Replayer(RunReader(run)).replay(9)
    kept = load_file(run / "keyframes/step-00000010/model.safetensors")
    for name, tensor in replayed.tensors.items():
        assert tensor.after.tobytes() == kept[name].tobytes()


def test_the_loss_of_a_step_is_the_mean_over_its_tokens(run):
    replayed = Replayer(RunReader(run)).replay(7)
    assert len(replayed.micro_batches) == 2
    for batch in replayed.micro_batches:
        assert batch.loss == pytest.approx(batch.losses.mean(), rel=1e-6)
        again = F.cross_entropy(torch.from_numpy(batch.logits).flatten(0, 1), torch.from_numpy(batch.targets).flatten())
        assert batch.loss == pytest.approx(float(again), rel=1e-6)
    assert replayed.loss == sum(batch.loss for batch in replayed.micro_batches) / 2


def test_the_loss_of_the_next_batch_is_what_training_found(run):
    reader = RunReader(run)
    replayed = Replayer(reader).replay(7)
    assert replayed.following == reader.step_record(8).loss
    assert replayed.again < replayed.loss  # a step on this batch makes it likelier


def test_run_on_to_the_next_keyframe_it_has_the_same_digest(one):
    replayer = Replayer(RunReader(one))
    replayer.replay(11)
    replayer.prove()
    assert replayer.state.step == 15
    assert (replayer.comparisons.kinds["keyframe"].made, replayer.comparisons.exact) == (2, True)


def test_a_step_that_was_never_made_is_refused(one):
    with pytest.raises(RunError, match=r"has made 24 steps: there is no step 24 to replay\. Name one from 0 to 23\."):
        Replayer(RunReader(one)).replay(24)


def test_the_probing_pass_has_the_logits_of_training(run):
    replayed = Replayer(RunReader(run)).replay(6)
    probe = replayed.probe(row=1)
    assert probe.difference == 0.0  # the same kernels, the same draws; a new torch may need a tolerance here
    assert np.allclose(probe.attention.sum(-1), 1, atol=1e-5)
    assert (np.triu(probe.attention, 1) == 0).all()
    assert probe.attention_difference < (0.05 if replayed.config.training.precision == "bfloat16" else 1e-5)


def test_the_last_lens_is_the_models_own_prediction(one):
    replayed = Replayer(RunReader(one)).replay(20)
    probe = replayed.probe()
    for token in (0, 17):
        last = replayed.lens(probe, token)[-1]
        assert np.abs(last - probe.logits[token]).max() < 0.04  # another shape: the last bit of a bfloat16 below 8


def test_replay_prints_what_scripts_need(one, vitrine):
    found = json.loads(vitrine("replay", one, "--step", 13, "--json").stdout)
    assert (found["step"], found["exact"], found["differs"]) == (13, True, [])
    assert found["loss"]["value"] == found["loss"]["recorded"]
    assert found["backward"]["gradient_norm"] == found["backward"]["recorded"]
    assert found["update"]["norm"] == found["update"]["recorded"]
    for tensor in found["tensors"]:
        for kind in ("weight_norm", "gradient_norm", "update_norm"):
            assert tensor[kind]["value"] == tensor[kind]["recorded"]
    assert all(kind["made"] == kind["equal"] for kind in found["compared"])
    text = vitrine("replay", one, "--step", 13, "--prove").stdout
    for phase in ("1 forward", "2 loss", "3 backward", "4 update", "exact: true"):
        assert phase in text


def test_the_tokens_of_a_row_are_its_text_one_by_one(one):
    seen = report_step(Replayer(RunReader(one)).replay(3), row=1, token=4).forward()
    assert (len(seen["tokens"]), "".join(seen["tokens"])) == (len(seen["attention"][0][0]), seen["batch"][0][1])


@pytest.mark.parametrize(
    ("tokenizer", "text", "expected"),
    [
        (byte_tokenizer(), "né €", ["n", "", "é", " ", "", "", "€"]),
        (train_bpe(iter(["the cat, the hat, the bat"] * 9), 262), "the cat é", ["the", " ", "c", "at", " ", "", "é"]),
    ],
)
def test_a_character_of_several_tokens_stands_at_its_last(tokenizer, text, expected):
    batch = SimpleNamespace(inputs=np.array([tokenizer.encode(text).ids]))
    tokens = StepReport(SimpleNamespace(micro_batches=[batch]), None, tokenizer, row=0, token=0).tokens()
    assert "".join(tokens) == text
    assert tokens == expected


def test_replay_saves_every_number_of_a_step(one, vitrine, tmp_path):
    assert vitrine("replay", one, "--step", 13, "--save", tmp_path / "step.safetensors").returncode == 0
    saved, replayed = load_file(tmp_path / "step.safetensors"), Replayer(RunReader(one)).replay(13)
    for name, tensor in replayed.tensors.items():
        for part in ("before", "gradient", "update", "after"):
            assert saved[f"{name}.{part}"].tobytes() == getattr(tensor, part).tobytes()
    done = vitrine("replay", one, "--step", 13, "--save", tmp_path / "nowhere/step.safetensors")
    assert (done.returncode, "cannot be written" in done.stderr) == (2, True)


def test_from_python_a_step_is_numpy_arrays(one):
    run = package.open_run(one)
    step = run.step(12)
    name = "blocks.0.attention.query.weight"
    assert isinstance(step.tensors[name].gradient, np.ndarray)
    table = run.statistics(name)
    assert table["step"].tolist() == list(range(STEPS))
    norm = np.linalg.norm(step.tensors[name].gradient.astype(np.float64))
    assert table["gradient_norm"][12] == pytest.approx(norm, rel=1e-5)


def test_it_works_while_the_training_goes_on_and_changes_no_bit_of_it(book, tmp_path, vitrine):
    command = ["train", str(book), *TINY, *HARD, "--steps", "60", "--json"]
    alone = json.loads(vitrine(*command, "--run", "alone").stdout)["digest"]
    training = Vitrine([*command, "--run", "r"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    reader = _wait_for_steps(tmp_path / "r", 12, training)
    asked = Python(["-c", _ASK, tmp_path / "r"], stdout=subprocess.PIPE, text=True)
    replayed = Replayer(reader).replay(9)
    assert replayed.exact, replayed.comparisons.differs
    assert training.poll() is None  # it still trains
    assert json.loads(training.communicate(timeout=120)[0])["digest"] == alone
    assert int(asked.communicate(timeout=60)[0]) > 0  # live pictures were seen


_ASK = """
import sys, time
from vitrine.runs.live import LiveReader
from pathlib import Path
reader, steps = LiveReader(Path(sys.argv[1]) / "live"), set()
for _ in range(30):
    reader.ask()
    picture = reader.read()
    steps |= {picture.step} if picture else set()
    time.sleep(0.05)
print(len(steps))
"""


# Seeded faults


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("threads", "7", "threads: 7 then, 1 now"), ("arithmetic", None, f"arithmetic: 1 then, {ARITHMETIC} now")],
)
def test_another_fingerprint_is_not_exact_and_says_what_differs(name, value, said, copy):
    with sqlite3.connect(copy / "run.sqlite") as history:
        facts = json.loads(history.execute("SELECT value FROM facts WHERE name = 'fingerprint'").fetchone()[0])
        if value is None:
            del facts[name]
        else:
            facts[name] = value
        history.execute("UPDATE facts SET value = ? WHERE name = 'fingerprint'", (json.dumps(facts),))
    replayed = Replayer(RunReader(copy)).replay(3)
    assert not replayed.exact
    assert replayed.comparisons.differs == [said]


def test_a_changed_row_of_history_is_found(copy):
    with sqlite3.connect(copy / "run.sqlite") as history:
        history.execute("UPDATE steps SET gradient_norm = gradient_norm * 1.0000001 WHERE step = 13")
    replayed = Replayer(RunReader(copy)).replay(13)
    assert not replayed.exact
    assert "gradient norm of step 13" in replayed.comparisons.differs[0]


def test_one_changed_bit_in_a_row_of_statistics_is_found(copy):
    with sqlite3.connect(copy / "run.sqlite") as history:
        row = bytearray(history.execute("SELECT numbers FROM statistics WHERE step = 12").fetchone()[0])
        row[40] ^= 1
        history.execute("UPDATE statistics SET numbers = ? WHERE step = 12", (bytes(row),))
    assert not Replayer(RunReader(copy)).replay(13).exact
    assert Replayer(RunReader(copy)).replay(17).exact  # it lies before the keyframe that this one comes from


def test_a_flipped_bit_in_a_keyframe_is_named_and_the_one_before_is_used(copy):
    _flip(copy / "keyframes/step-00000010/model.safetensors")
    notes: list[str] = []
    replayed = Replayer(RunReader(copy), notes.append).replay(12)
    assert "step-00000010/model.safetensors is not as it was written" in notes[0]
    assert replayed.exact  # made from step 5, on the bits that training had
    assert replayed.comparisons.kinds["loss"].first == 5


@pytest.mark.parametrize("fault", ["transposed tensor", "off by one step", "one parameter moved"])
def test_a_keyframe_that_was_forged_with_its_checksums_is_found(fault, copy, vitrine):
    folder = copy / "keyframes/step-00000010"
    if fault == "off by one step":
        shutil.rmtree(folder)
        shutil.copytree(copy / "keyframes/step-00000015", folder)
        manifest = json.loads((folder / "manifest.json").read_text()) | {"step": 10}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    else:
        tensors = load_file(folder / "model.safetensors")
        name = "blocks.1.attention.key.weight"
        if fault == "transposed tensor":
            tensors[name] = np.ascontiguousarray(tensors[name].T)
        else:
            tensors[name][3, 4] = np.nextafter(tensors[name][3, 4], np.float32(9))
        _forge(folder, tensors)
    replayed = Replayer(RunReader(copy)).replay(12)
    assert not replayed.exact
    assert replayed.comparisons.differs
    done = vitrine("verify", copy)
    if fault != "off by one step":  # there the parameters are sound, but of another step
        assert (done.returncode, "FAILED  keyframe 10" in done.stdout) == (1, True)
    replayed = Replayer(RunReader(copy))
    replayed.replay(9)
    assert "keyframe" in replayed.comparisons.differs[0]


# Verify


def test_verify_has_a_line_for_each_check_and_all_hold(run, vitrine):
    done = vitrine("verify", run, "--count", 4)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert all(line.startswith("ok") for line in lines)
    assert sum("replayed" in line for line in lines) == 4
    assert any("finite differences" in line for line in lines)
    assert any("against float64" in line for line in lines)


def test_verify_fails_on_a_flipped_bit(copy, vitrine):
    _flip(copy / "keyframes/step-00000020/optimizer.safetensors")
    done = vitrine("verify", copy, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["held"]) == (1, False)
    assert [check["what"] for check in found["checks"] if not check["held"]] == ["keyframe 20"]


def _train(factory: pytest.TempPathFactory, prose: str, kind: str) -> Path:
    def make(folder: Path) -> None:
        (folder / "book.txt").write_text(prose)
        command = ["train", "book.txt", *TINY, *HARD, *KINDS[kind], "--steps", str(STEPS), "--run", "r"]
        vitrine_in(folder, *command, check=True)

    return made_once(factory, f"replay-{kind}", make) / "r"


def _wait_for_steps(run: Path, steps: int, process: "subprocess.Popen[str]") -> RunReader:
    import time

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None
        if (run / "run.sqlite").is_file() and RunReader(run).steps_made() > steps:
            return RunReader(run)
        time.sleep(0.02)
    raise TimeoutError


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _forge(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write other parameters into a keyframe, with a manifest whose checksums of files hold."""
    import hashlib

    file = folder / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    manifest = json.loads((folder / "manifest.json").read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest["files"]["model.safetensors"] = {"size_bytes": file.stat().st_size, "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps(manifest))
