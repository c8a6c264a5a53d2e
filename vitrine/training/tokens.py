"""The token ids of a run: in its folder or, for a large corpus, in the cache; made again if lost there."""

import json
from pathlib import Path

from vitrine.config import Config
from vitrine.errors import CorpusError, RunError
from vitrine.recording.reporter import Reporter
from vitrine.runs.reader import TOKENIZER, TOKENS, RunReader
from vitrine.text import token_files
from vitrine.text.sources import Reading

KEPT_TOKENS_BYTES = 64 * 2**20  # a corpus up to this size is copied into the run; for a larger one the run has its path
POINTER = "pointer.json"


def keep_tokens(tokens: token_files.Prepared, folder: Path) -> None:
    """Copy the token ids into a new run, or record their path."""
    if kept_bytes(tokens):
        token_files.copy_prepared(tokens, folder)
        return
    folder.mkdir()
    pointer = {"folder": str(tokens.folder), "digest": tokens.corpus_digest}
    (folder / POINTER).write_text(json.dumps(pointer, indent=1), encoding="utf-8")


def kept_bytes(tokens: token_files.Prepared) -> int:
    """How many bytes of token ids a run will have in its folder."""
    size = sum(array.nbytes for array in (*tokens.train, tokens.validation))
    return size if size <= KEPT_TOKENS_BYTES else 0


def open_tokens(reader: RunReader) -> token_files.Prepared:
    """The token ids of a run, from its folder or the cache; made again if the cache lost them."""
    if not reader.config.data.corpus:
        raise RunError(
            f"{reader.path} was imported, and has no text of its own. Name one: vitrine evaluate {reader.path} FILE, "
            f"or, to train it further, vitrine train FILE --from {reader.path}@0."
        )
    folder = tokens_folder(reader)
    if folder.is_dir() or folder == reader.path / TOKENS:
        return token_files.open_prepared(folder)
    data = reader.config.data
    prepared = token_files.prepare(
        data.corpus,
        tokenizer=str(reader.path / TOKENIZER),
        validation=data.validation,
        validation_split=data.validation_split,
        reading=Reading.of(data),
    )
    _compare_digests(reader, list(prepared.source_digests))
    return prepared


def tokens_folder(reader: RunReader) -> Path:
    """The folder of a run's token ids; it may no longer exist."""
    pointer = reader.path / TOKENS / POINTER
    if not pointer.is_file():
        return pointer.parent
    return Path(json.loads(pointer.read_text(encoding="utf-8"))["folder"])


def check_corpus(reader: RunReader, reporter: Reporter) -> None:
    """Refuse to resume if the text has changed; without the text, the run's own token ids are used."""
    data = reader.config.data
    try:
        found = token_files.source_digests(data.corpus, Reading.of(data))
    except CorpusError as error:
        reporter.note(f"{error} Continuing with the token ids that the run keeps.")
        return
    _compare_digests(reader, found)


def tell_what_was_read(tokens: token_files.Prepared, config: Config, reporter: Reporter) -> None:
    """Report what was read, a line for each notable fact."""
    for line in tokens.summary.lines(config) if tokens.summary else ():
        reporter.note(line)


def _compare_digests(reader: RunReader, found: list[str]) -> None:
    recorded = json.loads(reader.facts().get("source_digests", "[]"))
    for spec, now, then in zip(reader.config.data.corpus, found, recorded, strict=False):
        if now != then:
            raise CorpusError(
                f"{spec} has changed since the run began (SHA-256 {then[:12]} then, {now[:12]} now), so "
                f"the run cannot be resumed exactly. Put the old text back, or start a new run from its "
                f"parameters: vitrine train {spec} --from {reader.path}@last."
            )
