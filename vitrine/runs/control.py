"""The mailbox of a run in training: other processes can request a pause, a resume, a stop or a snapshot. Needs no torch.

A request is a file `requests/ID.json` with its `id` and `action`. The trainer reads the folder between two steps. When a
request is done, the file is replaced by `requests/ID.done`, which also has the `step` of the training.
"""

import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from vitrine._files import whole_file
from vitrine.errors import RunError, nearest

REQUESTS = "requests"
ACTIONS = ("pause", "resume", "stop", "snapshot")
LOOK_EVERY_S = 0.1
KEPT_S = 60.0  # how long an answer is kept


@dataclass(frozen=True)
class Command:
    """What someone asks a training to do, as the trainer found it."""

    file: Path
    action: str


class Mailbox:
    """The trainer's side. Requests from before it started are discarded."""

    def __init__(self, run: Path) -> None:
        self.folder = run / REQUESTS
        self.looked_s = -1e9
        for file in self.folder.glob("*"):
            file.unlink(missing_ok=True)

    def commands(self) -> list[Command]:
        """What is asked for since the last look, the oldest first; looks ten times a second at most."""
        now = time.monotonic()
        if now - self.looked_s < LOOK_EVERY_S:
            return []
        self.looked_s = now
        if not self.folder.is_dir():
            return []
        files = sorted(self.folder.glob("*.json"))
        return [Command(file, action) for file in files if (action := _action(file)) is not None]

    def done(self, command: Command, step: int) -> None:
        """Acknowledge; and clear away what was acknowledged long ago."""
        answer = {"id": command.file.stem, "action": command.action, "step": step}
        with whole_file(command.file.with_suffix(".done"), durable=False) as temporary:
            temporary.write_text(json.dumps(answer), encoding="utf-8")
        command.file.unlink(missing_ok=True)
        for old in self.folder.glob("*.done"):
            if time.time() - old.stat().st_mtime > KEPT_S:
                old.unlink(missing_ok=True)


def ask(run: Path, action: str) -> str:
    """Put a request into the mailbox of a run; returns its id. Raises RunError if there is no such action."""
    if action not in ACTIONS:
        raise RunError(f"A training cannot be asked to {action!r}. {nearest(action, ACTIONS)}")
    folder = run / REQUESTS
    folder.mkdir(exist_ok=True)
    number = f"{time.time_ns():020d}-{secrets.token_hex(4)}"  # in the order of time
    with whole_file(folder / f"{number}.json", durable=False) as temporary:
        temporary.write_text(json.dumps({"id": number, "action": action}), encoding="utf-8")
    return number


def acknowledged(run: Path, number: str) -> int | None:
    """The step at which a request was done; None if it is not done yet."""
    try:
        answer = json.loads((run / REQUESTS / f"{number}.done").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return int(answer["step"])


def _action(file: Path) -> str | None:
    """The action of a request file; a file without a known action is removed."""
    try:
        action = json.loads(file.read_text(encoding="utf-8"))["action"]
    except (OSError, ValueError, KeyError, TypeError):
        action = None
    if action in ACTIONS:
        return str(action)
    file.unlink(missing_ok=True)
    return None
