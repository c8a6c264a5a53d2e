"""Built-in texts for anyone without a text of their own, and the folder where texts are kept. Needs no torch."""

import hashlib
import pydoc_data.topics
import stat
import urllib.error
import urllib.request
from pathlib import Path

from vitrine._files import partial, sha256, whole_file
from vitrine.errors import CorpusError
from vitrine.text.cache import PIPED, TEXTS, cache_folder, free_bytes

SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

CHUNK_BYTES = 2**20  # of a pipe at a time


def python_topics() -> Path:
    """The text of Python's own documentation, as a file in the cache."""
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[name].strip() for name in sorted(topics))
    return keep("python-topics.txt", text.encode("utf-8"))


def shakespeare() -> Path:
    """Tiny Shakespeare, 1.1 MB: the usual text for comparing small language models. Downloaded once."""
    file = cache_folder() / TEXTS / "shakespeare.txt"
    if file.is_file() and sha256(file) == SHAKESPEARE_SHA256:
        return file
    try:
        with urllib.request.urlopen(SHAKESPEARE, timeout=30) as answer:
            content: bytes = answer.read(10_000_000)
    except (urllib.error.URLError, OSError) as error:
        raise CorpusError(
            f"Shakespeare cannot be downloaded from {SHAKESPEARE}: {error}. Without a network: vitrine demo"
        ) from None
    if (found := hashlib.sha256(content).hexdigest()) != SHAKESPEARE_SHA256:
        raise CorpusError(
            f"What {SHAKESPEARE} sent is not the expected text: its SHA-256 is {found}, not "
            f"{SHAKESPEARE_SHA256}. Without it: vitrine demo"
        )
    return keep("shakespeare.txt", content)


def keep(name: str, content: bytes) -> Path:
    """Write a file into the cache atomically."""
    file = cache_folder() / TEXTS / name
    if file.is_file() and file.read_bytes() == content:
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as temporary:
        temporary.write_bytes(content)
    return file


def located(spec: str) -> str:
    """A corpus as a run remembers it: found again from any folder, and read again. A pipe is copied into the cache."""
    if spec.startswith("hf:"):
        return spec
    if not spec.strip():
        raise CorpusError("An argument is empty, and names no text. Give a file, a folder or a glob.")
    if is_pipe(spec):
        return str(_spool(spec))
    return str(Path(spec).absolute())


def is_pipe(spec: str) -> bool:
    """Whether a corpus can be read only once: standard input (-), or a named pipe such as <(...) of a shell."""
    try:
        return spec == "-" or stat.S_ISFIFO(Path(spec).stat().st_mode)
    except (OSError, ValueError):
        return False


def _spool(spec: str) -> Path:
    """Copy what comes through a pipe to a file that is named by the digest of its content."""
    folder, name = cache_folder() / TEXTS, "standard input" if spec == "-" else spec
    content, size = hashlib.sha256(), 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial(folder / f"{PIPED}txt", folder=False) as temporary:
            with open(0 if spec == "-" else spec, "rb", closefd=spec != "-") as pipe, open(temporary, "wb") as copy:
                while chunk := pipe.read(CHUNK_BYTES):
                    size += len(chunk)
                    if len(chunk) > free_bytes(folder):
                        raise CorpusError(
                            f"{name} does not fit on the disk of {folder}: {size:,} bytes came, and it goes on. Set "
                            "VITRINE_CACHE to a folder with more room."
                        )
                    content.update(chunk)
                    copy.write(chunk)
            if not size:
                raise CorpusError(f"{name} is empty. Send text through it: cat book.txt | vitrine train -")
            return temporary.rename(folder / f"{PIPED}{content.hexdigest()[:32]}.txt")
    except OSError as error:
        raise CorpusError(
            f"{name} cannot be copied into {folder}: {error.strerror or error}. Set VITRINE_CACHE to another folder."
        ) from None
