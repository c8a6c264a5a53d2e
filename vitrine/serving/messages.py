"""The messages between the server and its decoding process. Needs neither torch nor the web framework."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

STOP, LENGTH = "stop", "length"  # why a text ended

Top = tuple[tuple[int, float], ...]  # the likeliest tokens, likeliest first, and their log-probabilities


@dataclass(frozen=True)
class Job:
    """One text to write: a prompt, and how to continue it.

    choice: distinguishes texts with the same prompt and seed: each has its own random numbers.
    sampling: the decoding hyperparameters.
    ends: tokens that end a text.
    logprobs: how many of the likeliest tokens to report, in addition to the chosen one; None: no log-probabilities.
    echo: whether to report the log-probabilities of the prompt's own tokens.
    """

    number: int
    ids: tuple[int, ...]
    max_tokens: int
    sampling: dict[str, Any]
    seed: int
    choice: int = 0
    ends: frozenset[int] = frozenset()
    presence: float = 0.0
    frequency: float = 0.0
    bias: dict[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    echo: bool = False

    @property
    def digest(self) -> str:
        """A digest of the prompt, and of the options that make reading it take more memory."""
        asked = repr((self.ids, self.echo, self.echo and self.logprobs))
        return hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Token:
    """A token of a text (-1: no token was requested). end: why it is the last one; empty if it is not."""

    number: int
    id: int
    logprob: float = 0.0
    top: Top = ()
    end: str = ""


@dataclass(frozen=True)
class Heard:
    """The log-probabilities of a prompt's tokens, from the second one on."""

    number: int
    logprobs: tuple[float, ...]
    tops: tuple[Top, ...]


@dataclass(frozen=True)
class Failed:
    """A job that failed, with one sentence."""

    number: int
    sentence: str


Event = Token | Heard | Failed


@dataclass(frozen=True)
class Reading:
    """The decoding process begins to process a prompt. digest: of the job."""

    digest: str


@dataclass(frozen=True)
class Ready:
    """The decoding process has loaded its model.

    sizes: the batch sizes in which texts are decoded.
    drafted_from: tokens of training text from which drafts are made; 0: no drafts.
    """

    step: int
    precision: str
    threads: int
    sizes: str
    cache_bytes: int
    drafted_from: int
