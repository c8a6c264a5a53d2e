"""Tokens per second of a training step at equal shape, compared with transformers' Trainer and litgpt.

    python -m benchmarks.throughput [--sizes 10m] [--rounds 5] [--steps 4] [--only NAME...]

Each contestant is a process that is set up first. Then they make a few steps in turns, so that a slow phase of the machine
affects all. Each round also measures the rate of bfloat16 matrix products. The shape is GPT-2's: the same layers, width,
heads, context, batch and vocabulary (litgpt has rotary positions instead of learned ones); AdamW, clipping at 1, random
tokens. Peak memory is that of the whole process. Prints a table on standard error, and one JSON object on standard output.
`pip install -c constraints-benchmarks.txt -e '.[benchmarks]'` installs the peers, preferably in a separate environment; a
missing one is reported.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from vitrine.training.device import physical_cores

Step = Callable[[], None]


@dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    heads: int
    context: int
    batch: int
    vocab: int

    @property
    def tokens(self) -> int:
        return self.batch * self.context

    def batches(self) -> Iterator[torch.Tensor]:
        """Random tokens, (batch, context + 1), new for each step."""
        generator = torch.Generator().manual_seed(1)
        while True:
            yield torch.randint(self.vocab, (self.batch, self.context + 1), generator=generator)


SHAPES = {
    "1m": Shape(4, 128, 4, 64, 16, 65),
    "10m": Shape(6, 384, 6, 256, 16, 65),
    "30m": Shape(8, 512, 8, 256, 8, 8192),
    "124m": Shape(12, 768, 12, 512, 2, 50257),
}


def vitrine(shape: Shape, compiled: bool = False, recompute: bool = False) -> Step:
    """The step of `vitrine train`, without recording (benchmarks/recording.py measures that)."""
    from vitrine.presets import Facts, resolve
    from vitrine.step import MicroBatch, step
    from vitrine.training.distributed import Processes
    from vitrine.training.state import build_state

    sizes = {"n_layers": shape.layers, "d_model": shape.width, "n_heads": shape.heads, "context": shape.context}
    settings: dict[str, Any] = {
        "model": {"architecture": "gpt2", **sizes},
        "optimizer": {"name": "adamw"},
        "training": {"batch_size": shape.batch, "precision": "bfloat16"},
        "machine": {"compile": compiled, "recompute": recompute},
    }
    facts = Facts(vocab_size=shape.vocab, train_tokens=10**7, threads=torch.get_num_threads())
    _, state = build_state(resolve(settings, facts), Processes())
    batches = shape.batches()

    def one() -> None:
        windows = next(batches)
        step(state, [MicroBatch(windows[:, :-1], windows[:, 1:], None, 1.0, True)])

    return one


def litgpt(shape: Shape, precision: str, compiled: bool) -> Step:
    """A step of litgpt's pretraining."""
    import lightning
    from litgpt.model import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        n_layer=shape.layers,
        n_head=shape.heads,
        n_embd=shape.width,
        block_size=shape.context,
        vocab_size=shape.vocab,
        padded_vocab_size=shape.vocab,
    )
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]
    model: Any = GPT(config)
    model = fabric.setup(torch.compile(model) if compiled else model)
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1))
    batches = shape.batches()

    def one() -> None:
        windows = next(batches)
        loss = chunked_cross_entropy(model(windows[:, :-1]), windows[:, 1:])
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()

    return one


def trainer(shape: Shape, bfloat16: bool, compiled: bool, turns: Callable[[], None]) -> None:
    """transformers' Trainer has its own loop: it calls `turns` at the start of each step."""
    import transformers

    config = transformers.GPT2Config(
        n_layer=shape.layers, n_embd=shape.width, n_head=shape.heads, n_positions=shape.context, vocab_size=shape.vocab
    )
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0

    class Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return 10**6

        def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
            tokens = torch.randint(shape.vocab, (shape.context,), generator=torch.Generator().manual_seed(place))
            return {"input_ids": tokens, "labels": tokens}

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns()

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=shape.batch,
            max_steps=10**5,
            bf16=bfloat16,
            torch_compile=compiled,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=10**6,
        )
        model = transformers.GPT2LMHeadModel(config)
        transformers.Trainer(model, arguments, train_dataset=Windows(), callbacks=[Turns()]).train()


CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "vitrine": ("vitrine", {}),
    "vitrine, compiled": ("vitrine", {"compiled": True}),
    "vitrine, recompute": ("vitrine", {"recompute": True}),
    "Trainer, defaults": ("transformers", {"bfloat16": False, "compiled": False}),
    "Trainer, bf16": ("transformers", {"bfloat16": True, "compiled": False}),
    "Trainer, bf16, compiled": ("transformers", {"bfloat16": True, "compiled": True}),
    "litgpt, defaults": ("litgpt", {"precision": "32-true", "compiled": False}),
    "litgpt, bf16": ("litgpt", {"precision": "bf16-true", "compiled": False}),
    "litgpt, bf16, compiled": ("litgpt", {"precision": "bf16-true", "compiled": True}),
}
DEFAULTS = ("Trainer, defaults", "litgpt, defaults")


def compete(name: str, shape: Shape) -> None:
    """A contestant's process: it reads a number of steps from standard input, and answers with their seconds."""
    say, sys.stdout = sys.stdout, sys.stderr
    maker, options = CONTESTANTS[name]
    started: list[float] = []
    left = 0

    def turn() -> None:
        """Called before each step. After the steps of a turn, report and wait for the next turn."""
        nonlocal left
        if left == 0:
            if started:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                print(json.dumps({"s": time.perf_counter() - started.pop(), "peak_bytes": peak}), file=say, flush=True)
            line = sys.stdin.readline()
            if not line:
                os._exit(0)
            left = int(line)
            started.append(time.perf_counter())
        left -= 1

    if maker == "transformers":
        trainer(shape, turns=turn, **options)
        return
    step = (vitrine if maker == "vitrine" else litgpt)(shape, **options)
    while True:
        turn()
        step()


class Contestant:
    """A process that waits for its turn."""

    def __init__(self, name: str, size: str) -> None:
        self.name = name
        command = [sys.executable, "-m", "benchmarks.throughput", "--compete", name, "--sizes", size]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self.rates: list[float] = []
        self.peak_bytes = 0

    def turn(self, steps: int, shape: Shape) -> float:
        """Run this many steps; returns tokens per second, or 0 if the process has ended."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline() or "null")
        except BrokenPipeError:
            answer = None
        if answer is None:
            return 0.0
        self.peak_bytes = answer["peak_bytes"]
        return float(steps * shape.tokens / answer["s"])

    def last_words(self) -> str:
        """The last line that it wrote to standard error."""
        self.errors.seek(0)
        return (self.errors.read().strip().splitlines() or ["it said nothing"])[-1]


def matrix_rate(shape: Shape) -> float:
    """Operations per second of the products of this shape's MLP in bfloat16, the best of three tries."""
    inputs = torch.randn(shape.tokens, shape.width).bfloat16()
    weight = torch.randn(4 * shape.width, shape.width).bfloat16()
    operations = 2 * shape.tokens * shape.width * 4 * shape.width
    calls, best = max(3, int(3e10 / operations)), 0.0
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(calls):
            F.linear(inputs, weight)
        best = max(best, calls * operations / (time.perf_counter() - start))
    return best


def measure(size: str, names: list[str], rounds: int, steps: int) -> dict[str, Any]:
    """One shape: every contestant in turns."""
    from vitrine.model.inventory import flops_per_token
    from vitrine.presets import Facts, resolve

    shape = SHAPES[size]
    there = [Contestant(name, size) for name in names]
    for contestant in list(there):
        if not contestant.turn(2, shape):  # sets up, and compiles
            print(f"{contestant.name}: not measured: {contestant.last_words()}", file=sys.stderr)
            there.remove(contestant)
    products = []
    for _ in range(rounds):
        products.append(matrix_rate(shape))
        for contestant in there:
            contestant.rates.append(contestant.turn(steps, shape))
    for contestant in there:
        contestant.process.kill()
    sizes = {"n_layers": shape.layers, "d_model": shape.width, "n_heads": shape.heads, "context": shape.context}
    model = resolve({"model": {"architecture": "gpt2", **sizes}}, Facts(shape.vocab, 10**7)).model
    operations, rate = flops_per_token(model), statistics.median(products)
    return {
        "size": size,
        "matrix_flops_per_s": rate,
        "contestants": {
            c.name: {
                "tokens_per_s": round(statistics.median(c.rates)),
                "share_of_matrix_rate": round(statistics.median(c.rates) * operations / rate, 3),
                "peak_bytes": c.peak_bytes,
            }
            for c in there
        },
    }


def show(result: dict[str, Any]) -> None:
    found = result["contestants"]
    print(f"\n{result['size']}   matrix products {result['matrix_flops_per_s'] / 1e9:.0f} GFLOP/s", file=sys.stderr)
    for name, row in found.items():
        print(
            f"  {name:<26}{row['tokens_per_s']:>9,} tokens/s   {row['share_of_matrix_rate']:>4.0%} of the matrix rate   "
            f"peak {row['peak_bytes'] / 1e9:.2f} GB",
            file=sys.stderr,
        )
    ours = max((row["tokens_per_s"] for name, row in found.items() if name.startswith("vitrine")), default=0)
    for what, chosen in (("best peer", None), ("peers' defaults", DEFAULTS)):
        peers = [row["tokens_per_s"] for n, row in found.items() if (n in chosen if chosen else "vitrine" not in n)]
        if ours and peers:
            print(f"  ours against the {what}: {ours / max(peers):.2f}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["10m"], choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--only", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS, metavar="NAME")
    parser.add_argument("--compete", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(physical_cores())
    if given.compete:
        compete(given.compete, SHAPES[given.sizes[0]])
        return
    results = [measure(size, given.only, given.rounds, given.steps) for size in given.sizes]
    for result in results:
        show(result)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
