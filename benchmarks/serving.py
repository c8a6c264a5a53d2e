"""The speed of `vitrine serve`: one client compared with transformers' `generate`, and 64 clients compared with one.

    python -m benchmarks.serving [--architecture gpt2] [--steps 600] [--folder DIR] [--rounds 10] [--tokens 200]
                                 [--clients 64] [--seconds 20]

A model of 10.7 million parameters (6 layers, 6 heads, width 384, context 256), in float32 and in bfloat16. It is first
trained on tinyshakespeare for some minutes, because a single text uses drafts, and their speed depends on what the model
writes. It samples at temperature 1 from all tokens, with a different text in each round.
In each round all take a turn, in both formats: transformers' `generate`, the same with its own drafts (prompt lookup, three
tokens), and the server. Each generates the same number of tokens after the same prompt with the same number of threads. The
server is a separate process, reached over HTTP. Then many clients send requests at once, each as soon as it has its answer,
one in eight of them for a stream. The same is measured with one client, and with one client of a server that has no training
text for drafts. Counts errors (429 separately) and measures the memory of the server's processes. Prints a table on standard
error, and one JSON object on standard output.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch

import vitrine
from vitrine.training.device import physical_cores

from benchmarks.corpora import tinyshakespeare  # isort: skip

PRECISIONS = ("float32", "bfloat16")
SHAPE = {"n_layers": 6, "n_heads": 6, "d_model": 384, "context": 256, "dropout": 0.0}
PROMPT = "The king"
EVERY_TOKEN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
GOALS = {"float32": 2.0, "bfloat16": 3.0, "clients": 10.0}


def make_runs(folder: Path, architecture: str, steps: int) -> dict[str, Path]:
    """A run in bfloat16 that was trained for some steps, and one in float32 that continues it with almost no change.

    Runs that are already in the folder are used as they are.
    """
    settings: dict[str, Any] = {f"model.{key}": value for key, value in SHAPE.items()}
    settings |= {"model.architecture": architecture, "data.tokenizer": "char", "training.batch_size": 8}
    settings |= {"recording.enabled": False}
    trained, other = folder / "bfloat16", folder / "float32"
    text, precision = str(tinyshakespeare()), "training.precision"
    if not trained.exists():
        vitrine.train(text, run=trained, steps=steps, settings=settings | {precision: "bfloat16"})
    if not other.exists():
        settings |= {"optimizer.name": "sgd", "optimizer.learning_rate": 1e-9, precision: "float32"}
        vitrine.train(text, run=other, steps=1, settings=settings, parent=f"{trained}@last")
    return {"bfloat16": trained, "float32": other}


def without_text(run: Path, folder: Path) -> Path:
    """A copy of a run without its training text."""
    return Path(shutil.copytree(run, folder / f"{run.name}-without-text", ignore=shutil.ignore_patterns("tokens")))


@dataclass
class Server:
    """A server process, and its client."""

    address: str
    process: "subprocess.Popen[str]"
    name: str
    seconds: list[float] = field(default_factory=list)

    def body(self, tokens: int, **changes: Any) -> dict[str, Any]:
        return {"model": self.name, "prompt": PROMPT, "max_tokens": tokens} | EVERY_TOKEN | changes

    def single(self, client: httpx.Client, tokens: int, seed: int) -> None:
        start = time.perf_counter()
        answer = client.post(f"{self.address}/v1/completions", json=self.body(tokens, seed=seed))
        assert answer.json()["usage"]["completion_tokens"] == tokens, answer.text
        self.seconds.append(time.perf_counter() - start)

    def memory_bytes(self) -> int:
        """Resident memory of the server and of the process that decodes."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        pages = [int(Path(f"/proc/{each}/statm").read_text(encoding="ascii").split()[1]) for each in (pid, *children)]
        return sum(pages) * resource.getpagesize()


@contextlib.contextmanager
def serving(run: Path, clients: int) -> Iterator[Server]:
    command = [sys.executable, "-m", "vitrine", "serve", str(run), "--port", "0", "--parallel", str(clients)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        found = re.search(r"http://\S+:\d+", process.stdout.readline())
        assert found, "the server did not start"
        try:
            yield Server(found[0], process, run.name)
        finally:
            process.terminate()


class Transformers:
    """The same model, exported, in transformers."""

    def __init__(self, run: Path, precision: str, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = folder / f"{precision}-hf"
        vitrine.open_run(run).export(folder)
        self.ids = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt").input_ids
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, precision)).eval()
        self.model.generation_config.max_length = None
        self.seconds: list[float] = []
        self.drafted_seconds: list[float] = []

    def single(self, tokens: int, seed: int) -> None:
        for seconds, drafts in ((self.seconds, {}), (self.drafted_seconds, {"prompt_lookup_num_tokens": 3})):
            torch.manual_seed(seed)
            start = time.perf_counter()
            written = self.model.generate(
                self.ids, do_sample=True, **EVERY_TOKEN, max_new_tokens=tokens, min_new_tokens=tokens, **drafts
            )
            assert written.shape[1] == self.ids.shape[1] + tokens
            seconds.append(time.perf_counter() - start)


@dataclass
class Load:
    """What some clients measured in some time."""

    clients: int
    duration_s: float
    tokens: int
    statuses: Counter[str]
    memory_bytes: list[int]

    @property
    def rate(self) -> float:
        return self.tokens / self.duration_s

    @property
    def memory_growth(self) -> float:
        """The most memory of the second half divided by the first."""
        half = len(self.memory_bytes) // 2
        return max(self.memory_bytes[half:]) / max(self.memory_bytes[:half]) - 1


async def load(server: Server, clients: int, tokens: int, seconds: float) -> Load:
    """Clients that repeat requests until the time is over. Each waits for its last answer, and all of that time counts."""
    statuses: Counter[str] = Counter()
    memory: list[int] = []
    written, start = 0, time.perf_counter()
    end = start + seconds  # the last question

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        nonlocal written
        turn = 0
        while time.perf_counter() < end:
            turn += 1
            streamed = number % 8 == 7
            body = server.body(tokens, seed=1000 * number + turn, stream=streamed)
            try:
                answer = await client.post(f"{server.address}/v1/completions", json=body)
            except httpx.HTTPError as error:
                statuses[type(error).__name__] += 1
                continue
            whole = not streamed or answer.text.endswith("data: [DONE]\n\n")
            statuses[str(answer.status_code) if whole else "broken stream"] += 1
            if answer.status_code == 429:
                await asyncio.sleep(float(answer.headers["Retry-After"]))
            elif answer.status_code == 200 and whole:
                written += tokens

    async def watch() -> None:
        memory.append(server.memory_bytes())
        while time.perf_counter() < end:
            await asyncio.sleep(seconds / 40)
            memory.append(server.memory_bytes())

    watching = asyncio.ensure_future(watch())
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as client:
        await asyncio.gather(*(ask(client, number) for number in range(clients)))
        duration = time.perf_counter() - start
    await watching
    return Load(clients, duration, written, statuses, memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="gpt2")
    parser.add_argument("--steps", type=int, default=600, help="that the model is trained for")
    parser.add_argument("--folder", type=Path, help="where the trained runs are kept, for a next time")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    arguments = parser.parse_args()
    torch.set_num_threads(physical_cores())
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = make_runs(arguments.folder or folder, arguments.architecture, arguments.steps)
        peers = {precision: Transformers(run, precision, folder) for precision, run in runs.items()}
        servers = {name: stack.enter_context(serving(run, arguments.clients)) for name, run in runs.items()}
        plain = {name: stack.enter_context(serving(without_text(run, folder), 1)) for name, run in runs.items()}
        client = stack.enter_context(httpx.Client(timeout=120))
        for turn in range(arguments.rounds + 1):
            for precision in PRECISIONS:
                peers[precision].single(arguments.tokens, turn)
                servers[precision].single(client, arguments.tokens, turn)
            print(f"round {turn} of {arguments.rounds}", file=sys.stderr)
        loads = {
            precision: [
                asyncio.run(load(asked, clients, arguments.tokens // 2, arguments.seconds))
                for asked, clients in ((server, arguments.clients), (server, 1), (plain[precision], 1))
            ]
            for precision, server in servers.items()
        }
    result = {
        "shape": SHAPE | {"architecture": arguments.architecture},
        "threads": physical_cores(),
        "cpus": os.cpu_count(),
    }
    for precision in PRECISIONS:
        result[precision] = report(precision, peers[precision], servers[precision].seconds, arguments, loads)
    print(json.dumps(result))


def report(
    precision: str, peer: Transformers, ours: list[float], arguments: argparse.Namespace, loads: dict[str, list[Load]]
) -> dict[str, Any]:
    """The numbers of one format, and their lines of the table. The first round of each is a warm-up and does not count."""
    measured = (peer.seconds, peer.drafted_seconds, ours)
    rates = [arguments.tokens / statistics.median(seconds[1:]) for seconds in measured]
    ratios, drafted = ([a / b for a, b in zip(theirs[1:], ours[1:], strict=True)] for theirs in measured[:2])
    many, one, undrafted = loads[precision]
    ratio, growth = many.rate / one.rate, many.memory_growth
    errors = {status: count for status, count in many.statuses.items() if status not in ("200", "429")}
    lines = [
        f"{precision:<9} one stream   transformers {rates[0]:8.1f} tokens/s   vitrine serve {rates[2]:8.1f}   "
        f"{statistics.median(ratios):5.2f} times (goal {GOALS[precision]:g}; rounds {min(ratios):.2f}-{max(ratios):.2f})   "
        f"transformers with prompt lookup {rates[1]:8.1f}: {statistics.median(drafted):.2f} times",
        f"{precision:<9} {many.clients} clients   {many.rate:8.1f} tokens/s   1 client {one.rate:8.1f}   {ratio:5.2f} times "
        f"(goal {GOALS['clients']:g})   1 without drafts {undrafted.rate:8.1f}: {many.rate / undrafted.rate:.2f} times   "
        f"{dict(many.statuses)}   memory {many.memory_bytes[-1] / 2**20:.0f} MiB {growth:+.1%}",
    ]
    print("\n".join(lines), file=sys.stderr)
    return {
        "transformers_tokens_per_s": rates[0],
        "transformers_lookup_tokens_per_s": rates[1],
        "serve_tokens_per_s": rates[2],
        "ratio": statistics.median(ratios),
        "ratio_of_rounds": ratios,
        "ratio_to_lookup": statistics.median(drafted),
        "clients": many.clients,
        "clients_tokens_per_s": many.rate,
        "one_client_tokens_per_s": one.rate,
        "clients_ratio": ratio,
        "one_client_without_drafts_tokens_per_s": undrafted.rate,
        "statuses": dict(many.statuses),
        "errors": errors,
        "memory_bytes": many.memory_bytes,
        "memory_growth": growth,
    }


if __name__ == "__main__":
    main()
