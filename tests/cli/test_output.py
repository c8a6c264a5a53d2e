"""What reads the commands' output may be closed, go away, be full, or know few characters. The work goes on."""

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import vitrine as package
from tests.conftest import TINY, vitrine_in
from tests.warm import Vitrine
from vitrine.runs.reader import RunReader

full = pytest.mark.full
TRAIN = shlex.join([sys.executable, "-m", "vitrine", "train", "book.txt", *TINY, "--steps", "12", "--run", "r"])


def say(code: str, **options: object) -> "subprocess.CompletedProcess[bytes]":
    """A process that speaks as the commands do."""
    code = f"from vitrine.cli.output import *\nprepare_streams()\n{code}"
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, **options)


def read_all(terminal: int) -> str:
    """What was written to a terminal, until its other side is closed."""
    parts = []
    try:
        while part := os.read(terminal, 65_536):
            parts.append(part)
    except OSError:  # closed
        pass
    return b"".join(parts).decode()


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (f"{TRAIN} >&- 2>&- <&-", 0),
        (f"{TRAIN} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}", 141),
        pytest.param(f"{TRAIN} >&-", 0, marks=full),
        pytest.param(f"{TRAIN} 2>&-", 0, marks=full),
        pytest.param(f"{TRAIN} | head -1 >/dev/null; exit ${{PIPESTATUS[0]}}", 141, marks=full),
        pytest.param(f"{TRAIN} 2>&1 >out | head -1; exit ${{PIPESTATUS[0]}}", 0, marks=full),
        pytest.param(f"{TRAIN} 2>/dev/full", 0, marks=full),
        pytest.param(f"{TRAIN} >/dev/full", 2, marks=full),
    ],
)
def test_a_training_ends_and_is_saved_whatever_becomes_of_its_output(command, status, book, tmp_path):
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    result = RunReader(tmp_path / "r").result()
    assert (result["steps"], result["stopped"]) == (12, "steps")


@full
def test_under_nohup_a_training_outlives_its_terminal(book, tmp_path):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        shlex.split(TRAIN.replace("--steps 12", "--steps 400")),
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    os.close(theirs)
    while not (tmp_path / "r" / "run.sqlite").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.close(ours)
    assert process.wait(120) == 141
    assert RunReader(tmp_path / "r").result()["steps"] == 400


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is Linux's")
def test_a_full_standard_output_is_one_sentence():
    with open("/dev/full", "wb") as full_disk:
        code = "try:\n  with errors_as_sentences(): print_text('x')\nfinally:\n  end_streams(2)"
        done = subprocess.run(
            [sys.executable, "-c", f"from vitrine.cli.output import *\nprepare_streams()\n{code}"],
            stdout=full_disk,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.stderr.startswith("Standard output cannot be written: No space left on device.\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_cannot_be_encoded_is_escaped_and_json_is_then_ascii(encoding):
    code = "complain('ž'); print_text('é ž'); print_json({'a': 'é ž\\n'})"
    done = say(code, env=os.environ | {"PYTHONIOENCODING": f"{encoding}:strict"})
    assert done.returncode == 0
    text, found = done.stdout.decode(encoding).splitlines()
    assert text == {"ascii": "\\xe9 \\u017e", "latin-1": "é \\u017e", "utf-8": "é ž"}[encoding]
    assert json.loads(found) == {"a": "é ž\n"}
    assert found.isascii() == (encoding != "utf-8")
    assert done.stderr.decode(encoding) == ("ž\n" if encoding == "utf-8" else "\\u017e\n")


def test_a_name_that_is_no_valid_text_can_be_printed():
    done = say("print_json({'file': 'a\\udcffb'})")
    assert json.loads(done.stdout) == {"file": "a\udcffb"}


def test_what_a_model_writes_cannot_act_on_a_terminal_and_goes_raw_into_a_pipe(tmp_path: Path):
    text = "\x1b\x07\x7f\x9b\r"
    (tmp_path / "text.txt").write_text(text * 300, newline="")
    size = {"model.n_layers": 1, "model.d_model": 8, "model.n_heads": 1, "model.context": 8, "data.tokenizer": "char"}
    package.train(tmp_path / "text.txt", run=tmp_path / "r", steps=1, settings=size | {"recording.enabled": False})
    command = ["generate", tmp_path / "r", "--prompt", text]
    ours, theirs = pty.openpty()
    process = Vitrine(command, stdout=theirs)
    os.close(theirs)
    shown = read_all(ours).replace("\r\n", "\n").removesuffix("\n")
    os.close(ours)
    assert process.wait(60) == 0
    raw = vitrine_in(tmp_path, *command, check=True).stdout.removesuffix("\n")
    assert raw.startswith(text)
    pictures = dict(zip(text, ["␛", "␇", "␡", "\\x9b", "␍"], strict=True))
    assert shown == "".join(pictures[character] for character in raw)
