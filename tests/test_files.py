"""Files and folders that appear whole or not at all."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vitrine import _files
from vitrine._files import partial, remove_leftovers, whole_file, whole_folder


def test_a_file_and_a_folder_have_their_names_only_once_they_are_whole(tmp_path):
    with whole_file(tmp_path / "file") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "file").exists()
    with whole_folder(tmp_path / "folder") as temporary:
        (temporary / "part").write_text("new")
        assert not (tmp_path / "folder").exists()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"file", "folder", "folder/part"}
    (tmp_path / "usual").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("made", [whole_file, whole_folder])
def test_where_the_body_raises_nothing_is_left_and_nothing_replaced(made, tmp_path):
    (tmp_path / "there").mkdir() if made is whole_folder else (tmp_path / "there").write_text("old")

    def fail() -> None:
        with made(tmp_path / "there") as temporary:
            (temporary / "part" if made is whole_folder else temporary).write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    assert made is whole_folder or (tmp_path / "there").read_text() == "old"


def test_everything_is_on_the_disk_before_it_has_its_name_and_the_name_after_it(tmp_path, monkeypatch):
    calls, fsync = [], _files.fsync
    monkeypatch.setattr(_files, "fsync", lambda path: (calls.append((path.name, there())), fsync(path)))

    def there() -> list[str]:
        return sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".")

    with whole_file(tmp_path / "file") as file:
        file.write_text("new")
    with whole_folder(tmp_path / "folder") as folder:
        (folder / "part").write_text("new")
    assert calls == [
        (file.name, []),
        (tmp_path.name, ["file"]),
        ("part", ["file"]),
        (folder.name, ["file"]),
        (tmp_path.name, ["file", "folder"]),
    ]


def test_two_threads_that_write_the_same_file_leave_it_whole(tmp_path):
    inside = threading.Barrier(2, timeout=10)

    def write(text: str) -> None:
        with whole_file(tmp_path / "file", durable=False) as temporary:
            inside.wait()
            temporary.write_text(text)
            inside.wait()

    threads = [threading.Thread(target=write, args=(letter * 1000,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_text() in ("a" * 1000, "b" * 1000)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("links", [True, False], ids=["a disk with links", "a disk without"])
def test_a_file_that_must_not_be_replaced_is_not(links, tmp_path, monkeypatch):
    def refuse(*_: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(_files.os, "link", refuse)
    with whole_file(tmp_path / "new", replace=False) as temporary:
        temporary.write_text("new")

    def lose() -> None:
        with whole_file(tmp_path / "mine", replace=False) as temporary:
            temporary.write_text("new")
            (tmp_path / "mine").write_text("mine")

    with pytest.raises(FileExistsError):
        lose()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"new": "new", "mine": "mine"}


def test_a_folder_that_another_machine_writes_is_left_alone(tmp_path):
    """Its process is not seen from here, but its lock is."""
    with partial(tmp_path / "run") as folder:
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        renamed = folder.rename(tmp_path / f".run.partial-{gone.pid}")
        remove_leftovers(tmp_path)
        assert renamed.is_dir()
    remove_leftovers(tmp_path)
    assert not renamed.exists()


def test_a_name_that_is_only_like_a_leftover_is_left_alone(tmp_path):
    names = ["run.123456789", ".run.partial", ".run.partial-x", ".partial-123456789"]
    for name in names:
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == {*names}
