"""Whether the regular expressions of a tokenizer end in a sensible time, tried in a process that can be ended.

A tokenizer.json brings its own expressions, and some of them backtrack for ever: `(a+)+$` on many a's. No test finds all of
these. This one tries long repetitions of characters and words of the expressions themselves, which is what the usual bad
ones fail on. A server does not rely on it: it tokenizes in a child process, with a limit.
"""

import contextlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vitrine.errors import ConfigError

REPEATED = 2000  # times that each text is repeated: what grows with the square of it is quick, with the cube is not
TEXT_S = 1.0  # of processor time for each text
ALL_S = 10  # and for all
WAIT_S = 300.0  # for the process: other programs may have the processor
OURS = r"[\s\S]"  # of our own tokenizer of characters
USUAL = ("a", "A", "0", " ", "\n", ".", "'", "é", "中")
MOST_TEXTS = 50


def check_patterns(path: Path) -> None:
    """Raises ConfigError where a tokenizer.json takes too long for some text. One without own expressions costs nothing."""
    if not _patterns(path):
        return
    command = [sys.executable, "-m", __name__, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=WAIT_S, encoding="utf-8")
        found = done.stdout.strip() if done.returncode == 0 else "some texts"
    except subprocess.TimeoutExpired:
        found = "some texts"
    if found:
        raise ConfigError(
            f"The tokenizer {path} splits texts by a regular expression that takes too long, tried on {found}. Give "
            "another tokenizer."
        )


def slow_text(path: Path) -> str:
    """The first text that takes too long, described; empty if there is none."""
    from tokenizers import Tokenizer

    tokenizer, patterns = Tokenizer.from_file(str(path)), "\n".join(_patterns(path))
    texts = dict.fromkeys([*USUAL, *patterns, *re.findall(r"\w{2,8}", patterns)])
    # With all that an expression may look for behind them: without it, it is given up at once.
    ends = ("", "!", "".join(sorted(set(patterns))) + "\0")
    for text in [*texts][:MOST_TEXTS]:
        for end in ends:
            began_s = time.process_time()
            try:
                with contextlib.suppress(Exception):  # a character that it lacks
                    tokenizer.decode(tokenizer.encode(text * REPEATED + end, add_special_tokens=False).ids)
            except BaseException:  # a panic: the library gave up
                return f"{REPEATED} times {text!a}"
            if time.process_time() - began_s > TEXT_S:
                return f"{REPEATED} times {text!a}"
    return ""


def _patterns(path: Path) -> list[str]:
    """The regular expressions in a tokenizer.json that are not our own."""
    found: list[str] = []

    def keep(value: dict[str, Any]) -> dict[str, Any]:
        if isinstance(pattern := value.get("Regex"), str) and pattern != OURS:
            found.append(pattern)
        return value

    json.loads(path.read_text(encoding="utf-8"), object_hook=keep)
    return found


def _limit_processor_time() -> None:
    with contextlib.suppress(ImportError):  # another system: then WAIT_S is the only limit
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (ALL_S, ALL_S))


if __name__ == "__main__":
    _limit_processor_time()
    print(slow_text(Path(sys.argv[1])))
