"""Builds the responses from tokens: completions and chats, complete or as a stream."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from vitrine.generation.detokenize import Writer
from vitrine.serving.decoder_process import Decoding
from vitrine.serving.errors import ApiError
from vitrine.serving.messages import STOP, Event, Failed, Heard, Job, Token, Top
from vitrine.serving.served_model import Model


@dataclass
class Entry:
    """One token in a list of log-probabilities. start: where its text begins."""

    id: int
    logprob: float | None
    top: Top
    start: int


@dataclass
class Choice:
    """One continuation so far. echo: the prompt's text, if it is to be sent, and where its tokens begin."""

    index: int
    job: Job
    writer: Writer
    echo: str
    offsets: list[int]
    entries: list[Entry] = field(default_factory=list)
    length: int = 0
    end: str = ""

    def echoed(self, heard: Heard) -> list[Entry]:
        """The entries of the prompt; its first token has no prediction."""
        tokens = zip(self.job.ids, [None, *heard.logprobs], [(), *heard.tops], self.offsets, strict=True)
        return [Entry(*token) for token in tokens]

    def take(self, token: Token) -> str:
        """Add a token. Returns the text that can be sent now."""
        if token.id < 0:  # no token was requested
            self.end = token.end
            return ""
        self.length += 1
        if self.job.logprobs is not None:
            self.entries.append(Entry(token.id, token.logprob, token.top, len(self.echo) + self.writer.length))
        piece = "" if token.id in self.job.ends else self.writer.add(token.id)
        if self.writer.stopped:
            self.end = STOP
        elif token.end:
            self.end = token.end
            piece += self.writer.finish()
            if self.writer.stopped:
                self.end = STOP
        return piece


@dataclass
class Piece:
    """New output of a choice: text, log-probabilities, and whether it ended."""

    choice: Choice
    text: str
    entries: list[Entry]
    end: str = ""


UNREAD = 50_000  # limit of tokens (or log-probabilities) of a text that its client has not read; about 7 MB
TURN = 64  # tokens after which the event loop may serve other requests


class Answer:
    """A request in progress: its choices, each written by a job.

    Args:
        jobs: each with the echo before its continuation: the text, and where in it each token begins.
    """

    def __init__(
        self, model: Model, decoding: Decoding, jobs: list[tuple[Job, str, list[int]]], stops: tuple[str, ...]
    ) -> None:
        self.decoding = decoding
        self.id, self.created = secrets.token_hex(12), int(time.time())
        self.choices = [
            Choice(index, job, Writer(model.tokenizer, job.ids, stops), echo, offsets)
            for index, (job, echo, offsets) in enumerate(jobs)
        ]
        self._by_number = {choice.job.number: choice for choice in self.choices}
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._most = sum(UNREAD // (1 + (choice.job.logprobs or 0)) for choice in self.choices)
        self.on_first: Callable[[], None] = lambda: None

    @property
    def done(self) -> bool:
        """Whether every text has ended."""
        return all(choice.end for choice in self.choices)

    @property
    def written(self) -> int:
        """Tokens written so far."""
        return sum(choice.length for choice in self.choices)

    @property
    def usage(self) -> dict[str, int]:
        """Numbers of tokens read and written. A prompt counts once, even if several texts continue it."""
        read = sum(len(choice.job.ids) for choice in self.choices if choice.job.choice == 0)
        return {"prompt_tokens": read, "completion_tokens": self.written, "total_tokens": read + self.written}

    def start(self) -> None:
        """Submit the jobs. Raises ApiError if they are refused."""
        self.decoding.submit([choice.job for choice in self.choices], self._deliver)

    def stop(self) -> None:
        """Drop the jobs that have not ended."""
        for choice in self.choices:
            self.decoding.drop(choice.job.number)

    def _deliver(self, event: Event) -> None:
        if self._events.qsize() >= self._most:
            self.stop()
            event = Failed(event.number, "The client reads too slowly: the text was stopped.")
        self._events.put_nowait(event)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield new output until all texts have ended. Raises ApiError if a job fails."""
        for choice in self.choices:
            if choice.echo and not choice.job.echo:
                yield Piece(choice, choice.echo, [])
        left, turn = len(self.choices), 0
        while left:
            event = await self._events.get()
            turn = (turn + 1) % TURN
            if not turn:  # the queue returns waiting events without yielding to the loop
                await asyncio.sleep(0)
            if isinstance(event, Failed):
                raise ApiError(500, event.sentence)
            choice = self._by_number[event.number]
            if choice.end:  # it ended by a stop string; these tokens were sent before
                continue
            if isinstance(event, Heard):
                choice.entries = choice.echoed(event)
                yield Piece(choice, choice.echo, choice.entries)
                continue
            if not self.written:
                self.on_first()
            known = len(choice.entries)
            text = choice.take(event)
            if choice.end:
                left -= 1
                self.decoding.drop(choice.job.number)
            yield Piece(choice, text, choice.entries[known:], choice.end)


class Completion:
    """The response format of `/v1/completions`."""

    kind = "text_completion"
    prefix = "cmpl-"

    def __init__(self, model: Model) -> None:
        self.model = model

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """One choice in a stream; `whole` passes a complete one."""
        return {
            "index": piece.choice.index,
            "text": piece.text,
            "logprobs": None if piece.choice.job.logprobs is None else self._logprobs(piece.entries),
            "finish_reason": piece.end or None,
        }

    def whole(self, piece: Piece) -> dict[str, Any]:
        """One choice."""
        return self.chunk(piece)

    def _logprobs(self, entries: list[Entry]) -> dict[str, Any]:
        names = self.model.token_name
        return {
            "tokens": [names(entry.id) for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [None if entry.logprob is None else self._tops(entry) for entry in entries],
            "text_offset": [entry.start for entry in entries],
        }

    def _tops(self, entry: Entry) -> dict[str, float | None]:
        """The likeliest tokens and the chosen one. Of two with the same text, the likelier one is shown."""
        found: dict[str, float | None] = {}
        for token, logprob in (*entry.top, (entry.id, entry.logprob)):
            found.setdefault(self.model.token_name(token), logprob)
        return found


class Chat(Completion):
    """The response format of `/v1/chat/completions`."""

    kind = "chat.completion"
    prefix = "chatcmpl-"

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """One choice in a stream."""
        return self._choice(piece, "delta", {"content": piece.text})

    def whole(self, piece: Piece) -> dict[str, Any]:
        """One choice."""
        return self._choice(piece, "message", {"role": "assistant", "content": piece.text, "refusal": None})

    def _choice(self, piece: Piece, name: str, message: dict[str, Any]) -> dict[str, Any]:
        told = piece.choice.job.logprobs is not None
        content = [self._entry(entry.id, entry.logprob) | self._alternatives(entry) for entry in piece.entries]
        return {
            "index": piece.choice.index,
            name: message,
            "logprobs": {"content": content, "refusal": None} if told else None,
            "finish_reason": piece.end or None,
        }

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        name = self.model.token_name(token)
        raw = None if name.startswith("bytes:") else list(name.encode())
        return {"token": name, "logprob": logprob, "bytes": raw}

    def _alternatives(self, entry: Entry) -> dict[str, Any]:
        return {"top_logprobs": [self._entry(token, logprob) for token, logprob in entry.top]}


async def whole(answer: Answer, shape: Completion) -> dict[str, Any]:
    """The complete answer."""
    texts = [""] * len(answer.choices)
    async for piece in answer.pieces():
        texts[piece.choice.index] += piece.text
    choices = [
        shape.whole(Piece(choice, text, choice.entries, choice.end))
        for choice, text in zip(answer.choices, texts, strict=True)
    ]
    return _frame(answer, shape, shape.kind) | {"choices": choices, "usage": answer.usage}


async def stream(answer: Answer, shape: Completion, with_usage: bool) -> AsyncIterator[bytes]:
    """The answer as server-sent events. An error after the first event is sent as an event."""
    frame = _frame(answer, shape, "chat.completion.chunk" if isinstance(shape, Chat) else shape.kind)
    usage = {"usage": None} if with_usage else {}
    try:
        if isinstance(shape, Chat):
            for choice in answer.choices:
                first = {"index": choice.index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                yield _event(frame | {"choices": [first]} | usage)
        async for piece in answer.pieces():
            if piece.text or piece.entries or piece.end:
                yield _event(frame | {"choices": [shape.chunk(piece)]} | usage)
        if with_usage:
            yield _event(frame | {"choices": [], "usage": answer.usage})
        yield b"data: [DONE]\n\n"
    except ApiError as error:
        yield _event(error.to_json())


def _frame(answer: Answer, shape: Completion, kind: str) -> dict[str, Any]:
    return {"id": shape.prefix + answer.id, "object": kind, "created": answer.created, "model": shape.model.name}


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"
