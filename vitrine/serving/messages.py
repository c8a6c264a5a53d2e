"""What the server and its decoding process say to each other. Neither torch nor the web is needed for it."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

STOP, LENGTH = "stop", "length"  # why a text ended

Top = tuple[tuple[int, float], ...]  # the likeliest tokens, likeliest first, and their log-probabilities


@dataclass(frozen=True)
class Job:
    """A prompt, and how it is to be continued: one text.

    choice: tells texts of one prompt and seed apart: each has its own draws.
    sampling: the decoding hyperparameters.
    ends: tokens that end a text.
    logprobs: how many of the likeliest tokens are told, beside the chosen one; None: no log-probabilities at all.
    echo: whether the log-probabilities of the prompt's own tokens are asked for.
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
        """Of the prompt, and of what makes it take more memory to read."""
        asked = repr((self.ids, self.echo, self.echo and self.logprobs))
        return hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Token:
    """A token of a text (-1: none was asked for). end: why it is the last one; empty if it is not."""

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
    """A job that could not be done, in one sentence."""

    number: int
    sentence: str


Event = Token | Heard | Failed


@dataclass(frozen=True)
class Reading:
    """The decoding process begins to read a prompt. digest: of the job."""

    digest: str


@dataclass(frozen=True)
class Ready:
    """The decoding process has its model.

    sizes: in how many rows texts are decoded together.
    drafted_from: tokens of training text that drafts are made from; 0: there are none.
    """

    step: int
    precision: str
    threads: int
    sizes: str
    cache_bytes: int
    drafted_from: int
