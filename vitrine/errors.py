"""Errors that a user can fix. Each message says what was wrong, the value seen, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class VitrineError(Exception):
    """The user's input is wrong. The command prints the message and exits with status 2."""


class ConfigError(VitrineError):
    """A hyperparameter is missing, misspelled, out of range, or contradicts another."""


class CorpusError(VitrineError):
    """The text cannot be found, read or used."""


class PromptError(VitrineError):
    """A prompt cannot be encoded or continued by this model."""


class RunError(VitrineError):
    """A run folder is missing, damaged or locked, or does not have what was asked for."""


class DivergedError(Exception):
    """The loss or a gradient is not finite. The training stopped before the update (exit status 1)."""


def nearest(name: str, known: Iterable[str]) -> str:
    """«Did you mean ...?» for a misspelled name, or the list of known names if none is similar."""
    known = list(known)
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"Did you mean {close[0]}?" if close else f"Known: {', '.join(known)}."
