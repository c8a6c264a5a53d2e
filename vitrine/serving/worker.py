"""The decoding process: writes all texts together, one token each at every step.

A waiting text joins at the next step; one that ends frees its row at once; one without a client is dropped.
"""

import sys
import time
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
from torch import Tensor

from vitrine.config import SamplingConfig
from vitrine.errors import VitrineError
from vitrine.generation.engine import Engine
from vitrine.generation.sampling import NOT_FINITE, Chooser, are_finite, choose
from vitrine.run import Run
from vitrine.serving.messages import LENGTH, STOP, Event, Failed, Heard, Job, Reading, Ready, Token, Top
from vitrine.training.checkpoint import find_step

SAY_EVERY_S = (
    0.02  # a message per token would cost the server as much as the token; first and last ones are sent at once
)
PROMPTS_AT_ONCE = 512  # tokens of new prompts processed between two steps: limits how long the other texts wait


def work(connection: Connection, run: str, step: str, rows: int) -> None:
    """The main function of the process.

    Args:
        rows: the most texts decoded together.
    """
    try:
        batch = _load(connection, run, step, rows)
    except VitrineError as error:
        connection.send(error)
        return
    connection.send(batch.ready)
    batch.run()


def _load(connection: Connection, run: str, step: str, rows: int) -> "Batch":
    opened = Run(run)
    number = find_step(opened, step)
    model = opened.model(number)
    engine = Engine(model, rows, opened.ngrams)
    sizes = engine.settle()
    precision = str(model.compute_dtype).removeprefix("torch.")
    drafted_from = opened.ngrams.tokens if engine.drafting else 0
    ready = Ready(number, precision, torch.get_num_threads(), sizes, engine.cache_bytes, drafted_from)
    return Batch(connection, engine, opened.tokenizer.get_vocab_size(), ready)


@dataclass
class Text:
    """One continuation being written. token: the model's next input."""

    job: Job
    chooser: Chooser
    token: int
    length: int = 0


class Batch:
    """The texts in the rows of the engine, and the jobs that wait for a row.

    Args:
        known: tokens of the tokenizer; the padding of the vocabulary beyond them is never sampled.
    """

    def __init__(self, connection: Connection, engine: Engine, known: int, ready: Ready) -> None:
        self.connection, self.engine, self.known, self.ready = connection, engine, known, ready
        self.waiting: deque[Job] = deque()
        self.rows: list[Text] = []
        self.events: list[Event] = []  # not sent yet
        self.urgent = False  # whether one of them must not wait
        self.said_s = 0.0

    def run(self) -> None:
        """Decode until the server ends."""
        while True:
            try:
                while self.connection.poll(0 if self.rows or self.waiting else None):
                    self._hear(self.connection.recv())
            except (EOFError, OSError):
                return
            try:
                self._admit()
                self._step()
            except ConnectionError:  # the server has ended
                return
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                self._fail_all(f"The model could not be computed: {type(error).__name__}: {error}.")
            if self.events and (self.urgent or time.monotonic() - self.said_s > SAY_EVERY_S):
                try:
                    self.connection.send(self.events)
                except OSError:
                    return
                self.events, self.urgent, self.said_s = [], False, time.monotonic()

    def _hear(self, message: Job | int) -> None:
        """Receive a new job, or the number of one to drop."""
        if isinstance(message, Job):
            self.waiting.append(message)
        else:
            self._drop(message)

    def _drop(self, number: int) -> None:
        self.waiting = deque(job for job in self.waiting if job.number != number)
        self._remove([row for row, text in enumerate(self.rows) if text.job.number == number])

    def _remove(self, rows: list[int]) -> None:
        for row in sorted(rows, reverse=True):
            self.engine.remove(row)
            last = self.rows.pop()
            if row < len(self.rows):
                self.rows[row] = last

    def _fail_all(self, sentence: str) -> None:
        jobs = [text.job for text in self.rows] + [*self.waiting]
        self.events = [Failed(job.number, sentence) for job in jobs]
        self.urgent = True
        self.waiting.clear()
        self._remove([*range(len(self.rows))])

    def _admit(self) -> None:
        """Give rows to waiting jobs, in their order."""
        read, row = 0, None
        while self.waiting and len(self.rows) < self.engine.rows and read < PROMPTS_AT_ONCE:
            job = self.waiting.popleft()
            self.connection.send(Reading(job.digest))
            if row is not None and self.rows[row].job.ids == job.ids:
                row = self.engine.fork(row)
            else:
                row = self.engine.add(job.ids)
                read += len(job.ids)
            sampling = SamplingConfig(**job.sampling)
            chooser = Chooser(sampling, job.seed, job.choice, job.ids, job.presence, job.frequency, job.bias)
            self.rows.append(Text(job, chooser, job.ids[-1]))
            if job.echo:
                self._say_prompt(job)
            if job.max_tokens == 0:
                self.events.append(Token(job.number, -1, end=LENGTH))
                self.urgent = True
                self._remove([row])
                row = None

    def _say_prompt(self, job: Job) -> None:
        logits = self.engine.prompt_logits()
        chosen, tops = self._logprobs(logits, job.ids[1:], [job.logprobs or 0] * len(logits))
        self.events.append(Heard(job.number, tuple(chosen), tuple(tops)))

    def _step(self) -> None:
        """Decode one token for every row."""
        if not self.rows:
            return
        logits = self.engine.step([text.token for text in self.rows])
        if not all(are_finite(logits)):
            self._fail_all(NOT_FINITE)
            return
        tokens = choose(logits[:, : self.known], [text.chooser for text in self.rows])
        told = {row: text.job.logprobs for row, text in enumerate(self.rows) if text.job.logprobs is not None}
        probable: dict[int, tuple[float, Top]] = {}
        if told:
            asked = [*told]
            pairs = self._logprobs(logits[asked], [tokens[row] for row in asked], [*map(int, told.values())])
            probable = dict(zip(asked, zip(*pairs, strict=True), strict=True))
        ended = []
        for row, (text, token) in enumerate(zip(self.rows, tokens, strict=True)):
            text.token = token
            text.length += 1
            job = text.job
            end = STOP if token in job.ends else LENGTH if text.length == job.max_tokens else ""
            self.events.append(Token(job.number, token, *probable.get(row, (0.0, ())), end))
            self.urgent = self.urgent or text.length == 1 or bool(end)
            if end:
                ended.append(row)
        self._remove(ended)

    def _logprobs(self, logits: Tensor, chosen: Sequence[int], counts: list[int]) -> tuple[list[float], list[Top]]:
        """Of each row: the log-probability of the chosen token, and of the likeliest ones.

        They are the model's own, before any decoding hyperparameter.
        """
        if not chosen:
            return [], []
        logprobs = logits.cpu().log_softmax(-1)
        values = logprobs.gather(1, torch.tensor(chosen)[:, None])[:, 0].tolist()
        best, places = logprobs[:, : self.known].topk(min(max(counts), self.known))
        tops = [
            tuple(zip(ids[:count], some[:count], strict=True))
            for ids, some, count in zip(places.tolist(), best.tolist(), counts, strict=True)
        ]
        return values, tops
