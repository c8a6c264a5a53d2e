"""Texts that are there for whoever has none at hand, and the place where texts are kept. Needs no torch."""

import hashlib
import os
import pydoc_data.topics
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from vitrine.data.cache import TEXTS, cache_folder, remove_leftovers
from vitrine.errors import CorpusError

SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def python_topics() -> Path:
    """The prose on the language that every Python carries, as a file in the cache."""
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[name].strip() for name in sorted(topics))
    return keep("python-topics.txt", text.encode("utf-8"))


def shakespeare() -> Path:
    """The 1.1 MB of Shakespeare that small language models are compared on; downloaded once."""
    file = cache_folder() / TEXTS / "shakespeare.txt"
    if file.is_file() and _sha256(file.read_bytes()) == SHAKESPEARE_SHA256:
        return file
    try:
        with urllib.request.urlopen(SHAKESPEARE, timeout=30) as answer:
            content: bytes = answer.read(10_000_000)
    except (urllib.error.URLError, OSError) as error:
        raise CorpusError(
            f"Shakespeare cannot be downloaded from {SHAKESPEARE}: {error}. Without a network: vitrine demo"
        ) from None
    if _sha256(content) != SHAKESPEARE_SHA256:
        raise CorpusError(
            f"What {SHAKESPEARE} sent is not the expected text: its SHA-256 is {_sha256(content)}, not "
            f"{SHAKESPEARE_SHA256}. Without it: vitrine demo"
        )
    return keep("shakespeare.txt", content)


def keep(name: str, content: bytes) -> Path:
    """Write a file into the cache, whole or not at all."""
    file = cache_folder() / TEXTS / name
    if file.is_file() and file.read_bytes() == content:
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(file.parent)
    ending = f".partial-{os.getpid()}"
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{name}.", suffix=ending, delete=False) as handle:
        handle.write(content)
    return Path(handle.name).rename(file)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
