"""A studio during training: a separate process that reads the run's folder and ends with the command.

The trainer does not depend on it. It has its own session, so that Ctrl-C in the terminal reaches only the training.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

GOES_S = 5.0  # for it to end


class Companion:
    """The studio of a training command; does nothing unless `wanted`.

    Args:
        wanted: whether to start a studio, once the run's folder exists.
        browser: whether to open its page.
    """

    def __init__(self, wanted: bool, browser: bool) -> None:
        self.wanted, self.browser = wanted, browser
        self.say: Callable[[str], None] = lambda line: None
        self.process: subprocess.Popen[str] | None = None
        self.listener: threading.Thread | None = None
        self.address, self.kept = "", False

    def open(self, run: Path, say: Callable[[str], None]) -> None:
        """Start it for this run, without waiting. say: prints a line on the terminal."""
        if not self.wanted:
            return
        self.say = say
        command = [sys.executable, "-m", "vitrine.studio.companion", str(run), *(["--browser"] if self.browser else [])]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def keep(self) -> None:
        """After the training: keep the page open until Ctrl-C."""
        self.kept = True

    def __enter__(self) -> "Companion":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is None:
            return
        try:
            if self.kept:
                self._stay(self.process)
        except KeyboardInterrupt:
            pass
        finally:
            self._close(self.process)

    def _listen(self) -> None:
        assert self.process
        assert self.process.stdout
        self.address = self.process.stdout.readline().strip()
        if self.address:
            self.say(f"studio      {self.address}")
        else:
            self.say("The studio could not be opened. The training continues without it.")

    def _stay(self, process: "subprocess.Popen[str]") -> None:
        assert self.listener
        self.listener.join()
        if self.address:
            self.say(f"The training has ended; the studio stays open at {self.address}\nCtrl-C ends it.")
            process.wait()

    def _close(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin
        assert process.stdout
        process.stdin.close()  # it ends when the other end is closed
        try:
            process.wait(GOES_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def main(run: str, browser: bool) -> None:
    """The main function of the process: serve until the process that started it has ended."""
    from vitrine.studio.command import serve

    def go_when_alone() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGINT)

    def say(address: str) -> None:
        sys.stdout.write(address + "\n")
        sys.stdout.flush()

    threading.Thread(target=go_when_alone, daemon=True).start()
    serve([run], 0, browser, say)


if __name__ == "__main__":
    main(sys.argv[1], "--browser" in sys.argv[2:])
