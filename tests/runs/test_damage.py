"""What was damaged, lost or changed in a run folder is named; what follows from the rest is made again."""

import json
import os
import shutil
from pathlib import Path

import pytest

from vitrine import open_run
from vitrine.errors import RunError
from vitrine.runs.reader import HISTORY, KEYFRAMES, RunReader
from vitrine.runs.retention import keyframe_path
from vitrine.runs.store import Store


@pytest.fixture
def unended(copy: Path) -> Path:
    """The small run as an interruption would have left it: at step 15, with the history of 20 steps."""
    shutil.rmtree(keyframe_path(copy / KEYFRAMES, 20))
    with Store(copy / HISTORY) as store:
        store.connection.execute("DELETE FROM facts WHERE name = 'result'")
        store.connection.execute("DELETE FROM evaluations WHERE step = 20")
    return copy


@pytest.fixture
def digest(small: Path) -> str:
    """Of the parameters that the small run ends with."""
    return RunReader(small).result()["digest"]


def birth_of(run: Path) -> Path:
    return keyframe_path(run / KEYFRAMES, 0)


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def forget(run: Path, *facts: str) -> None:
    with Store(run / HISTORY) as store:
        for name in facts:
            store.connection.execute("DELETE FROM facts WHERE name = ?", (name,))


# Birth ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "known"), [("one bit", "by the history"), ("one bit", "by the manifest"), ("the folder", "by the history")]
)
def test_a_damaged_birth_is_made_again_from_the_seed(loss, known, unended, small, digest, command):
    if known == "by the manifest":
        forget(unended, "birth")
    if loss == "one bit":
        damage(birth_of(unended) / "model.safetensors")
    else:
        shutil.rmtree(birth_of(unended))
    done = command("resume", unended, "--json")
    assert done.exit_code == 0, done.stderr
    assert "It was made again from the seed, with the same digest." in done.stderr
    assert json.loads(done.stdout)["digest"] == digest
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (birth_of(unended) / name).read_bytes() == (birth_of(small) / name).read_bytes()
    assert (unended / "film/frames.bin").read_bytes() == (small / "film/frames.bin").read_bytes()


@pytest.mark.parametrize("reason", ["Its digest is lost with it", "The seed 1 now gives parameters with the digest"])
def test_a_birth_that_nothing_proves_is_not_made_up_and_the_run_goes_on(reason, unended, digest, command):
    frames = (unended / "film/frames.bin").read_bytes()
    if reason.startswith("Its"):
        shutil.rmtree(birth_of(unended))
        forget(unended, "birth")
    else:
        damage(birth_of(unended) / "model.safetensors")
        with Store(unended / HISTORY) as store:
            store.set_fact("birth", 64 * "0")
    done = command("resume", unended, "--json")
    assert done.exit_code == 0, done.stderr
    assert reason in done.stderr
    assert "The film, which shows what was learned since, stops here." in done.stderr
    assert json.loads(done.stdout)["digest"] == digest
    assert (unended / "film/frames.bin").read_bytes() == frames


def test_a_damaged_birth_that_came_from_another_run_is_done_without(unended, digest, command):
    forget(unended, "identity")
    change(unended, parent=('parent = ""', 'parent = "runs/other@10"'))
    damage(birth_of(unended) / "model.safetensors")
    done = command("resume", unended, "--json")
    assert done.exit_code == 0, done.stderr
    assert "It came from runs/other@10, so it cannot be made again from the seed." in done.stderr
    assert json.loads(done.stdout)["digest"] == digest


@pytest.mark.parametrize(
    "arguments",
    [["replay", "--step", "12"], ["inspect", "embedding.weight[3,7]", "--step", "12"]],
    ids=lambda arguments: arguments[0],
)
def test_a_damaged_birth_does_not_hinder_a_look_at_a_later_step(arguments, copy, small, command):
    name, *rest = arguments
    sound = command(name, small, *rest, "--json")
    (birth_of(copy) / "model.safetensors").write_bytes(b"")
    done = command(name, copy, *rest, "--json")
    assert done.exit_code == 0, done.stderr
    told = [json.loads(text.replace(str(copy), str(small))) for text in (done.stdout, sound.stdout)]
    assert told[0] == told[1]


def test_verify_names_a_damaged_birth(copy, command):
    damage(birth_of(copy) / "model.safetensors")
    done = command("verify", copy, "--count", 1)
    assert done.exit_code == 1
    assert "FAILED  keyframe 0: " in done.stdout


# The history ----------------------------------------------------------------------------------------------------------


def test_corrupt_pages_are_named_with_what_is_still_sound(unended, tmp_path, command):
    content = bytearray((unended / HISTORY).read_bytes())
    for page in range(4096, len(content), 4096):
        content[page : page + 64] = os.urandom(64)
    (unended / HISTORY).write_bytes(content)
    done = command("resume", unended)
    assert done.exit_code == 2
    assert f"{unended / HISTORY} cannot be read: it is damaged" in done.stderr
    advice = f"vitrine train --from {unended}@15."
    assert advice in done.stderr
    assert command("train", "--from", f"{unended}@15", "--steps", "2", "--run", tmp_path / "new").exit_code == 0
    done = command("verify", unended, "--count", 1)
    assert done.exit_code == 1
    assert f"FAILED  {HISTORY}: " in done.stdout


def test_a_lost_log_leaves_a_gap_that_is_named(unended, digest, command):
    """As if run.sqlite-wal, with the last steps, had been deleted."""
    with Store(unended / HISTORY) as store:
        store.connection.execute("DELETE FROM steps WHERE step > 7")
        store.connection.execute("DELETE FROM statistics WHERE step > 7")
    gap = "The steps 8 to 14 are missing from the history, although keyframe 15 says that they were made"
    done = command("resume", unended, "--json")
    assert done.exit_code == 0, done.stderr
    assert gap in done.stderr
    assert json.loads(done.stdout)["digest"] == digest
    done = command("verify", unended, "--count", 1)
    assert done.exit_code == 1
    assert f"FAILED  history: {gap}" in done.stdout


def test_the_log_of_a_kill_may_be_deleted_and_the_gap_is_named(small, tmp_path, command):
    """The same with a real one: a writer that ends without closing leaves it."""
    run = Path(shutil.copytree(small, tmp_path / "r"))
    with Store(run / HISTORY) as store:
        store.connection.execute("DELETE FROM steps")
    writer = os.fork()
    if writer == 0:
        store = Store(run / HISTORY)
        for record in RunReader(small).steps():
            store.write(record)
        store.commit()
        os._exit(0)
    os.waitpid(writer, 0)
    assert RunReader(run).missing_steps() == []
    (run / "run.sqlite-wal").unlink()
    assert RunReader(run).missing_steps() == [(0, 19, 20)]


def test_a_gap_in_the_middle_is_found_and_a_run_that_records_nothing_has_none(copy):
    with Store(copy / HISTORY) as store:
        store.connection.execute("DELETE FROM steps WHERE step IN (3, 4, 11)")
    assert RunReader(copy).missing_steps() == [(3, 4, 5), (11, 11, 15)]
    text = (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(text.replace("enabled = true", "enabled = false"))
    assert RunReader(copy).missing_steps() == []


# The hyperparameters --------------------------------------------------------------------------------------------------


def change(run: Path, **settings: str) -> None:
    text = (run / "config.toml").read_text()
    for before, after in settings.values():
        assert before in text
        text = text.replace(before, after)
    (run / "config.toml").write_text(text)


def test_changed_hyperparameters_are_refused_by_key_then_and_now(unended, command):
    change(unended, steps=("steps = 20\n", "steps = 30\n"), seed=("seed = 1\n", "seed = 2\n"))
    done = command("resume", unended)
    assert done.exit_code == 2
    assert "began (training.seed: 1 then, 2 now; training.steps: 20 then, 30 now). Put it back, or" in done.stderr
    assert "FAILED  config.toml: " in command("verify", unended, "--count", 1).stdout


def test_what_is_recorded_may_change_and_where_the_text_lies(unended, tmp_path, digest, command):
    book = RunReader(unended).config.data.corpus[0]
    moved = shutil.copy(book, tmp_path / "moved.txt")
    change(unended, corpus=(book, str(moved)), budget=("disk_budget = 2000000000", "disk_budget = 1000000000"))
    done = command("resume", unended, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["digest"] == digest


def test_a_hyperparameter_that_came_later_has_its_default_on_both_sides(copy):
    with Store(copy / HISTORY) as store:
        identity = json.loads(store.fact("identity"))
        del identity["training"]["patience"]
        store.set_fact("identity", json.dumps(identity))
    assert RunReader(copy).changed_settings() == {}
    change(copy, patience=("patience = 0\n", "patience = 3\n"))
    assert RunReader(copy).changed_settings() == {"training.patience": (0, 3)}


def test_a_run_whose_history_does_not_know_its_hyperparameters_is_taken_as_it_is(unended, command):
    forget(unended, "identity", "birth", "files")
    assert command("resume", unended).exit_code == 0
    assert "FAILED" not in command("verify", unended, "--count", 1).stdout


# Other files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tokenizer.json", "FAILED  tokenizer.json: SHA-256"),
        ("film/picks.bin", "FAILED  film/picks.bin: SHA-256"),
        ("film/manifest.json", "FAILED  film/manifest.json: SHA-256"),
        ("film/frames.bin", "FAILED  film: 1 of "),
    ],
)
def test_verify_finds_a_changed_byte_in_a_file(name, expected, copy, command):
    assert "FAILED" not in command("verify", copy, "--count", 1).stdout
    content = bytearray((copy / name).read_bytes())
    at = content.rindex(b"0") if name.endswith(".json") else len(content) // 2
    content[at] ^= 1
    (copy / name).write_bytes(content)
    done = command("verify", copy, "--count", 1)
    assert done.exit_code in (1, 2)  # 2: a tokenizer that cannot be read at all
    assert expected in done.stdout


def test_a_film_that_is_gone_is_named(copy, command):
    shutil.rmtree(copy / "film")
    assert "FAILED  film/manifest.json: No such file or directory" in command("verify", copy, "--count", 1).stdout


# A step that there is not ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [-1, 20, 9999])
def test_commands_and_python_agree_on_the_steps_there_are(step, small, command):
    sentence = f"{small} has made 20 steps: there is no step {step} to replay. Name one from 0 to 19."
    with pytest.raises(RunError) as refusal:
        open_run(small).step(step)
    assert str(refusal.value) == sentence
    for arguments in (["replay"], ["inspect"], ["inspect", "embedding.weight"]):
        done = command(arguments[0], small, *arguments[1:], "--step", step)
        assert (done.exit_code, done.stderr) == (2, f"{sentence}\n")


def test_without_any_keyframe_there_is_a_sentence(copy, command):
    shutil.rmtree(copy / KEYFRAMES)
    for arguments in (["replay"], ["inspect", "embedding.weight"], ["generate"]):
        done = command(arguments[0], copy, *arguments[1:])
        assert done.exit_code == 2, arguments
        assert "keyframe" in done.stderr
        assert done.stderr.count("\n") == 1
    done = command("verify", copy, "--count", 1)
    assert done.exit_code == 1
    assert "FAILED  keyframes: birth is missing" in done.stdout


def test_without_any_keyframe_a_run_is_made_again_from_its_seed(copy, digest, command):
    shutil.rmtree(copy / KEYFRAMES)
    forget(copy, "result")
    done = command("resume", copy, "--json")
    assert done.exit_code == 0, done.stderr
    assert "20 steps made again: equal to the bit." in done.stderr
    assert json.loads(done.stdout)["digest"] == digest


@pytest.mark.parametrize("when", ["before it is read", "while it is read"])
def test_a_keyframe_that_makes_room_while_it_is_read_is_done_without(when, copy, command, monkeypatch):
    """The run still trains: what was listed may be gone."""
    from vitrine.training import checkpoint

    path, sha256 = keyframe_path(copy / KEYFRAMES, 10), checkpoint.sha256
    monkeypatch.setattr("vitrine.inspection.replay.keyframe_steps", lambda folder: [0, 5, 10, 15, 20])
    monkeypatch.setattr("vitrine.inspection.verify.keyframe_steps", lambda folder: [0, 5, 10, 15, 20])

    def digest_and_remove(file: Path) -> str:
        if file.parent == path:
            shutil.rmtree(path)
        return sha256(file)

    if when == "before it is read":
        shutil.rmtree(path)
    else:
        monkeypatch.setattr(checkpoint, "sha256", digest_and_remove)
    done = command("replay", copy, "--step", 12, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["exact"] is True
    assert "step-00000010 is gone: old keyframes are removed for newer ones. Using the one before." in done.stderr
    done = command("verify", copy, "--count", 1)
    assert (done.exit_code, "FAILED" in done.stdout) == (0, False), done.stdout


# A model is read once -------------------------------------------------------------------------------------------------


def test_a_model_is_read_once_and_never_its_optimizer(copy, monkeypatch):
    from vitrine.training import checkpoint

    read: list[str] = []
    sha256 = checkpoint.sha256
    monkeypatch.setattr(checkpoint, "sha256", lambda file: read.append(file.name) or sha256(file))
    run = open_run(copy)
    texts = {run.generate("The ", 5).text for _ in range(3)}
    assert len(texts) == 1
    assert read == ["model.safetensors"]


def test_a_later_keyframe_and_one_that_was_written_anew_are_seen(copy):
    run, folder = open_run(copy), copy / KEYFRAMES
    shutil.move(keyframe_path(folder, 20), folder / "later")
    first = run.model()
    assert run.model() is first
    shutil.move(folder / "later", keyframe_path(folder, 20))
    second = run.model()
    assert second is not first
    for name in ("model.safetensors", "manifest.json"):  # another step's numbers under the same name
        content = (keyframe_path(folder, 5) / name).read_bytes()
        (keyframe_path(folder, 20) / name).write_bytes(content)
    assert run.model() is not second
