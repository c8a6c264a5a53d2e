"""The commands as a user types them: what they print, and how they end."""

import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.conftest import TINY
from tests.warm import Vitrine
from vitrine import api
from vitrine.cli.main import app
from vitrine.cli.summary import outcome
from vitrine.errors import ConfigError
from vitrine.inspection.compare_runs import compare
from vitrine.runs.reader import RunReader
from vitrine.training.loop import Result


def test_help_answers_at_once():
    """Nothing heavier than the parser itself is imported."""
    code = "import sys, vitrine.cli.main as cli; sys.argv = ['vitrine', '--help']; cli.main()"
    watched = f"import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); {code}"
    done = subprocess.run([sys.executable, "-c", watched], check=True, capture_output=True, text=True)
    assert "Usage: vitrine" in done.stdout
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "typer" in loaded
    assert not loaded & {"torch", "numpy", "pydantic", "tokenizers", "safetensors", "fastapi", "starlette", "uvicorn"}


EMPTY = [
    ["train", ""],
    ["train", "book.txt", "--run", ""],
    ["train", "book.txt", "--run-dir="],
    ["train", "book.txt", "--config", ""],
    ["train", "book.txt", "--from", ""],
    ["train", "book.txt", "--for", ""],
    ["demo", "--run", ""],
    ["import", "folder", "--run", ""],
    ["evaluate", "run", ""],
    ["inspect", "run", ""],
    ["compare", "run", ""],
    ["studio", ""],
    ["report", "run", "--out", ""],
    ["export", "run", ""],
    ["replay", "run", "--save", ""],
    *(
        [command, ""]
        for command in ("resume", "generate", "evaluate", "replay", "inspect", "health", "verify", "serve")
    ),
]


@pytest.mark.parametrize("arguments", EMPTY, ids=" ".join)
def test_an_empty_argument_is_a_mistake_and_never_the_current_folder(arguments, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert re.fullmatch(r"\S.* must not be empty: got ''\. Give it a value \(.+\)\.\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, 10**22])
def test_verify_takes_a_number_of_steps_that_can_be_replayed(count):
    done = CliRunner().invoke(app, ["verify", "run", "--count", str(count)])
    assert (done.exit_code, done.stderr) == (2, f"--count must be from 1 to 10,000: got {count}. Try --count 3.\n")


def test_help_names_every_command(vitrine):
    text = vitrine("--help").stdout
    for command in ("demo", "train", "resume", "plan", "generate", "evaluate", "doctor"):
        assert f"  {command} " in text


def test_train_prints_one_json_object_alone_on_standard_output(vitrine, book):
    done = vitrine("train", book, *TINY, "--steps", 20, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) >= {
        "run",
        "steps",
        "parameters",
        "train_loss",
        "val_loss",
        "bits_per_byte",
        "duration_s",
        "training_s",
        "tokens_per_s",
        "digest",
        "stopped",
    }
    assert (result["steps"], result["stopped"]) == (20, "steps")


def test_each_loss_says_of_what_it_is(vitrine, book, tmp_path):
    result = json.loads(vitrine("train", book, *TINY, "--steps", 20, "--run", "r", "--json").stdout)
    run = RunReader(tmp_path / "r")
    last = run.steps()[-1]
    assert (result["train_loss"], result["train_loss_tokens"]) == (last.loss, run.config.tokens_per_step)
    measured = run.evaluations()[-1]
    assert (result["val_loss"], result["val_tokens"]) == (measured.loss, measured.tokens)
    assert run.result() == result
    listed = compare([("r", run), ("again", RunReader(copied(tmp_path / "r")))]).to_json()["runs"][0]
    assert (listed["train_loss"], listed["val_tokens"]) == (last.loss, run.sampled_evaluations()[-1].tokens)
    said = outcome(Result(**result))
    assert f"training loss {last.loss:.4f} (the batch of the last step)" in said
    assert f"bits per byte (all {measured.tokens:,} validation tokens)" in said
    part = outcome(Result(**(result | {"val_tokens": 5, "val_whole": False})))
    assert f"(5 of {measured.tokens:,} validation tokens)" in part


def copied(run: Path) -> Path:
    return shutil.copytree(run, run.with_name(f"{run.name} again"))


def test_the_main_commands_work_one_after_the_other(vitrine, book, tmp_path):
    trained = json.loads(vitrine("train", book, *TINY, "--steps", 20, "--run", "r", "--json").stdout)
    evaluated = json.loads(vitrine("evaluate", "r", "--json").stdout)
    assert evaluated["loss"] == trained["val_loss"]
    assert evaluated["bits_per_byte"] == trained["bits_per_byte"]
    assert set(evaluated) == {"loss", "bits_per_byte", "perplexity", "tokens"}
    written = json.loads(vitrine("generate", "r", "--prompt", "The ", "--max-new-tokens", 12, "--json").stdout)
    assert written["text"].startswith(written["prompt"])
    assert written["prompt"] == "The "
    assert (written["tokens"], len(written["text"])) == (12, 16)
    plain = vitrine("generate", "r", "--prompt", "The ", "--max-new-tokens", 12)
    assert plain.stdout == written["text"] + "\n"


def test_plan_counts_what_train_trains(vitrine, book):
    plan = json.loads(vitrine("plan", book, *TINY, "--steps", 20, "--json").stdout)
    trained = json.loads(vitrine("train", book, *TINY, "--steps", 1, "--json").stdout)
    assert plan["parameters"] == sum(t["parameters"] for t in plan["tensors"]) == trained["parameters"]
    assert set(plan) >= {"flops_per_token", "memory_bytes", "keyframe_bytes", "duration_s"}
    assert set(plan["tensors"][0]) >= {"name", "shape", "kind", "parameters"}
    assert plan["duration_s"] > 0


def test_doctor_finds_that_this_machine_repeats_itself_to_the_bit(vitrine):
    findings = json.loads(vitrine("doctor", "--json").stdout)
    assert findings["repeats_to_the_bit"] is True
    assert findings["float32_flops"] > 1e8


def test_the_demo_without_a_terminal_trains_shows_three_temperatures_and_ends_by_itself(vitrine):
    done = vitrine("demo", "--for", "4s")
    assert done.returncode == 0, done.stderr
    for temperature in ("0.2", "0.8", "1.2"):
        assert f"--- temperature {temperature} ---" in done.stdout
    assert "Try next:" in done.stdout
    assert "vitrine studio runs/python-topics-1 " in done.stdout
    assert "access=" not in done.stderr


def test_with_for_the_steps_and_the_evaluations_are_chosen_for_that_time_before_the_first_step(vitrine, book, tmp_path):
    (tmp_path / "long.txt").write_text(book.read_text() * 100)  # 6 MB, which would take far longer than the training
    long = ["--set", "data.validation=long.txt", "--set", "data.tokenizer=byte"]
    done = vitrine("train", book, "--preset", "nano", *long, "--for", "5s", "--run", "r", "--json")
    assert done.returncode == 0, done.stderr
    result, training = json.loads(done.stdout), tomllib.loads((tmp_path / "r/config.toml").read_text())["training"]
    assert result["stopped"] in ("steps", "time")
    assert 1 <= result["steps"] <= training["steps"]
    assert result["val_tokens"] == training["final_evaluation_tokens"] < 2_000_000
    assert result["val_whole"] is False
    assert result["val_split_tokens"] == 100 * len(book.read_bytes())  # and the end of the text, less the first token
    plain = vitrine("train", book, *TINY, "--steps", 1, "--set", "training.final_evaluation_tokens=640")
    assert "(623 of 5,9" in plain.stdout


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_a_time_from_python_must_be_a_positive_number(seconds, book):
    with pytest.raises(ConfigError, match="--for must be positive"):
        api.train(book, for_s=seconds, run=book.parent / "r")
    assert not (book.parent / "r").exists()


def test_a_target_stops_the_training_at_or_below_it(vitrine, book):
    done = vitrine("train", book, *TINY, "--steps", 400, "--target-loss", 3.2, "--json")
    result = json.loads(done.stdout)
    assert result["stopped"] == "target"
    assert result["val_loss"] <= 3.2
    assert result["steps"] < 400


def test_validation_text_may_be_a_file_of_its_own_found_again_from_anywhere(vitrine, book, tmp_path):
    (tmp_path / "other.txt").write_text(book.read_text()[:5000])
    settings = [*TINY, "--steps", 10, "--set", "data.validation=other.txt"]
    assert vitrine("train", book, *settings, "--run", "r").returncode == 0
    validation = tomllib.loads((tmp_path / "r/config.toml").read_text())["data"]["validation"]
    assert validation == [str(tmp_path / "other.txt")]
    measured = json.loads(vitrine("evaluate", "r", "--json").stdout)
    assert measured["tokens"] == 4999


def test_training_from_a_keyframe_remembers_its_parent(vitrine, book, tmp_path):
    vitrine("train", book, *TINY, "--steps", 10, "--run", "parent")
    done = vitrine(
        "train",
        book,
        "--from",
        "parent@5",
        "--steps",
        3,
        "--set",
        "optimizer.learning_rate=0.001",
        "--run",
        "child",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    config = (tmp_path / "child/config.toml").read_text()
    assert 'parent = "parent@5"' in config
    born = json.loads((tmp_path / "child/keyframes/step-00000000/manifest.json").read_text())
    parent = json.loads((tmp_path / "parent/keyframes/step-00000005/manifest.json").read_text())
    assert born["digest"] == parent["digest"]


WRONG = {
    "an empty file": (["train", "empty.txt"], "holds no text"),
    "a file shorter than the context": (["train", "short.txt"], "needs at least"),
    "bytes that are not UTF-8": (["train", "bad.txt"], "byte at offset 3 is 0xff"),
    "UTF-16": (["train", "utf16.txt"], "UTF-16"),
    "a missing path": (["train", "boook.txt"], "Did you mean"),
    "nothing to train on": (["train"], "no text to learn from"),
    "a misspelled hyperparameter": (["train", "book.txt", "--set", "model.n_layer=3"], "Did you mean model.n_layers?"),
    "heads that do not divide": (["train", "book.txt", "--set", "model.n_heads=3"], "divisible by model.n_heads"),
    "a negative learning rate": (["train", "book.txt", "--set", "optimizer.learning_rate=-1"], "got -1"),
    "a learning rate that is NaN": (["train", "book.txt", "--set", "optimizer.learning_rate=nan"], "got nan"),
    "zero steps": (["train", "book.txt", "--steps", "0"], "training.steps must be at least 1: got 0"),
    "top_p of 2": (["train", "book.txt", "--set", "sampling.top_p=2"], "got 2"),
    "CUDA where there is none": (["train", "book.txt", "--set", "machine.device=cuda:63"], "CUDA devices"),
    "a run folder that exists": (["train", "book.txt", "--run", "there"], "there exists already"),
    "a preset that is not one": (["train", "book.txt", "--preset", "mikro"], "Did you mean micro?"),
    "a time that is not one": (["train", "book.txt", "--for", "soon"], "90s, 10m or 2h"),
    "a run that is not one": (["generate", "nowhere"], "nowhere does not exist"),
    "a setting without a value": (["train", "book.txt", "--set", "model.n_layers"], "section.key=value"),
    "a model that no memory holds": (
        ["train", "book.txt", *["--preset", "micro", "--set", "model.d_model=1048576"]],
        "GB",
    ),
    "a small BPE": (["train", "book.txt", "--set", "data.tokenizer=bpe:100"], "bpe:100 is too small"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_sentence_and_leaves_nothing_behind(name, vitrine, book, tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "bad.txt").write_bytes(b"abc\xff\xfe")
    (tmp_path / "utf16.txt").write_text("hello", encoding="utf-16")
    (tmp_path / "there").mkdir()
    before = sorted(tmp_path.rglob("*"))
    arguments, expected = WRONG[name]
    done = vitrine(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("limit_bytes", "begins"), [(30_000, False), (200_000, True)])
def test_a_disk_that_takes_no_more_is_one_sentence_and_breaks_nothing(limit_bytes, begins, vitrine, book, tmp_path):
    book.write_text(book.read_text()[:10_000])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Of every file: those of a keyframe are smaller than 200 kB, but the history grows beyond.
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        rarely = ["--set", "recording.keyframe_every=50"]
        done = vitrine("train", "book.txt", *TINY, *rarely, "--steps", 150, "--run", "r")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    left = [path.name for path in tmp_path.glob("r/keyframes/*")]
    assert ("step-00000000" in left) == begins
    assert not [name for name in left if name.startswith(".")]
    assert not list(tmp_path.glob(".r*"))
    if begins:
        assert vitrine("resume", "r").returncode == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--top-p", "2"),
        ("--temperature", "-1"),
        ("--top-k", "-1"),
        ("--repetition-penalty", "1e-40"),
        ("--max-new-tokens", "-1"),
        ("--seed", str(2**63)),
        ("--step", "'newest'"),
    ],
)
def test_wrong_decoding_is_refused(option, value, vitrine, small):
    done = vitrine("generate", small, "--prompt", "The", option, value.strip("'"))
    assert done.returncode == 2
    assert f"got {value}" in done.stderr
    assert done.stdout == ""


def test_a_damaged_keyframe_is_named_and_others_are_offered(vitrine, small, tmp_path):
    shutil.copytree(small, tmp_path / "r")
    steps = sorted(int(path.name.removeprefix("step-")) for path in (tmp_path / "r/keyframes").iterdir())
    (tmp_path / f"r/keyframes/step-{steps[-1]:08d}/model.safetensors").write_bytes(b"")
    done = vitrine("generate", "r", "--prompt", "The")
    assert done.returncode == 2
    assert f"step-{steps[-1]:08d}/model.safetensors has 0 bytes" in done.stderr
    assert f"r has keyframes of the steps {', '.join(map(str, steps[:-1]))}." in done.stderr
    assert done.stdout == ""


def test_a_character_that_the_corpus_lacks_is_a_clear_sentence(vitrine, small):
    done = vitrine("generate", small, "--prompt", "naïve 🙂")
    assert done.returncode == 2
    assert "'ï' (U+00EF)" in done.stderr
    assert done.stdout == ""


def test_temperature_zero_is_greedy_whatever_the_seed(vitrine, small):
    texts = {
        vitrine("generate", small, "--prompt", "The", "--temperature", 0, "--seed", seed).stdout for seed in (1, 2)
    }
    assert len(texts) == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_exits(number, status, vitrine, book, tmp_path):
    process = _start_training(book, tmp_path)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status
    result = json.loads(output)
    assert result["stopped"] == "interrupted"
    assert (tmp_path / f"r/keyframes/step-{result['steps']:08d}/manifest.json").is_file()


def test_a_signal_while_the_corpus_is_prepared_leaves_no_half_written_tokens(book, tmp_path):
    book.write_text(book.read_text() * 100)
    command = ["train", "book.txt", "--set", "data.tokenizer=bpe:4096", "--run", "r"]
    own = os.environ | {"VITRINE_CACHE": str(tmp_path / "cache")}
    process = Vitrine(command, cwd=tmp_path, env=own, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("cache/tokens/.*.partial-*")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert not list(tmp_path.glob("cache/tokens/.*"))
    assert not (tmp_path / "r").exists()


def test_a_process_with_torch_in_it_ends_before_python_takes_it_apart():
    program = """
import atexit, sys
from vitrine.cli.main import main
atexit.register(print, "taken apart")
sys.argv = sys.argv[:1] + sys.argv[2:]
main()
"""
    for command, status, end in ((["resume", "nowhere"], 2, ""), (["--help"], 0, "taken apart\n")):
        words = [sys.executable, "-c", program, "", *command]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert done.stdout.endswith(end)
        assert ("nowhere does not exist" in done.stderr) == (status == 2)
        assert ("taken apart" in done.stdout) == (status == 0)


@pytest.mark.full
def test_wrong_input_under_torchrun_is_a_sentence_and_no_process_has_a_traceback(book, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += ["-m", "vitrine", "train", "boook.txt", "--run-dir", "r"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert "There is no file or folder" in done.stderr
    # The other process says that this one has ended, unless torchrun ends it first.
    assert "[rank" not in done.stderr  # how torch marks a traceback of a process
    assert not (tmp_path / "r").exists()


def test_a_second_trainer_on_a_run_is_refused(vitrine, book, tmp_path):
    process = _start_training(book, tmp_path)
    try:
        done = vitrine("resume", "r")
        assert done.returncode == 2
        assert f"r is being trained by process {process.pid}" in done.stderr
    finally:
        process.kill()
        process.communicate()


def test_a_corpus_that_changed_is_refused_on_resume(vitrine, book, tmp_path):
    process = _start_training(book, tmp_path)
    process.send_signal(signal.SIGINT)
    process.communicate()
    book.write_text(book.read_text().replace("e", "a", 1))
    done = vitrine("resume", "r")
    assert done.returncode == 2
    assert "book.txt has changed since the run began" in done.stderr


def test_gradients_that_are_not_finite_stop_before_the_update(vitrine, book, tmp_path):
    done = vitrine(
        "train",
        book,
        *TINY,
        "--steps",
        50,
        "--run",
        "r",
        "--set",
        "optimizer.name=sgd",
        "--set",
        "optimizer.learning_rate=1e15",
        "--set",
        "optimizer.clip=0",
    )
    assert done.returncode == 1
    # Which of the two comes first depends on the processor's bits.
    assert re.search(r"(are not finite|is too large for float32)\. The update was not made\.", done.stderr)
    assert "vitrine train --from r@0" in done.stderr
    assert vitrine("generate", "r", "--step", 0, "--max-new-tokens", 5).returncode == 0


def _start_training(book: Path, folder: Path) -> "subprocess.Popen[str]":
    """A long training in a process of its own, that has made some steps."""
    process = Vitrine(
        ["train", book, *TINY, "--steps", 100000, "--run", "r", "--json"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (folder / "r/keyframes/step-00000010/manifest.json").is_file():
        assert process.poll() is None, "the training ended"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process
