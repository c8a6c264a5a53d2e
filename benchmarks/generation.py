"""Tokens per second of generation, by model size and number of texts, compared with transformers' `generate`.

    python -m benchmarks.generation [--sizes 10m] [--texts 1 8 64] [--tokens 100] [--rounds 5]

GPT-2's architecture in the shapes of benchmarks/throughput.py, in float32 and in bfloat16, in one process, with greedy
decoding. The weights are random, because the speed does not depend on them. For each size, format and number of texts, both
sides take turns with the same number of threads; the first round is a warm-up. Ours is the loop of `vitrine generate` and
`serve`, without the tokenizer and the network (benchmarks/serving.py measures over HTTP). Prints a table on standard error,
and one JSON object on standard output.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.throughput import SHAPES, Shape
from vitrine.config import SamplingConfig
from vitrine.generation.engine import Engine
from vitrine.generation.sampling import Chooser, choose
from vitrine.model.decoder import initialise
from vitrine.presets import Facts, resolve
from vitrine.training.device import keep_freed_memory, physical_cores

PROMPT = [1, 2, 3, 5, 8, 13, 21, 34]
GREEDY = SamplingConfig(temperature=0)
PRECISIONS = (torch.float32, torch.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["10m"], choices=SHAPES)
    parser.add_argument("--texts", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(physical_cores())
    rows = [
        row
        for size in given.sizes
        for precision in PRECISIONS
        for row in compare(size, precision, given.texts, min(given.tokens, SHAPES[size].context - 16), given.rounds)
    ]
    print(json.dumps(rows))


def compare(size: str, precision: torch.dtype, texts: list[int], tokens: int, rounds: int) -> list[dict[str, Any]]:
    """One model in one format: a table row for each number of texts."""
    shape, found = SHAPES[size], []
    for count in texts:
        turns = {"vitrine": ours(shape, precision, count), "transformers": theirs(shape, precision, count)}
        seconds: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(rounds + 1):
            for name, turn in turns.items():
                start = time.perf_counter()
                turn(tokens)
                seconds[name].append(time.perf_counter() - start)
        rates = {name: count * tokens / statistics.median(some[1:]) for name, some in seconds.items()}
        ratios = [b / a for a, b in zip(seconds["vitrine"][1:], seconds["transformers"][1:], strict=True)]
        row = {
            "size": size,
            "precision": str(precision).removeprefix("torch."),
            "texts": count,
            "tokens_per_s": rates["vitrine"],
            "transformers_tokens_per_s": rates["transformers"],
            "ratio": statistics.median(ratios),
        }
        print(
            f"{size:>5} {row['precision']:<9}{count:>4} texts   vitrine {rates['vitrine']:9.1f} tokens/s   transformers "
            f"{rates['transformers']:9.1f}   {row['ratio']:5.2f} times ({min(ratios):.2f}-{max(ratios):.2f})",
            file=sys.stderr,
        )
        found.append(row)
    return found


def ours(shape: Shape, precision: torch.dtype, count: int) -> Callable[[int], None]:
    """A turn of our engine: this many tokens for each text."""
    sizes = {"n_layers": shape.layers, "d_model": shape.width, "n_heads": shape.heads, "context": shape.context}
    facts = Facts(vocab_size=shape.vocab, train_tokens=10**7)
    config = resolve({"model": {"architecture": "gpt2", **sizes}}, facts).model
    engine = Engine(initialise(config, seed=1, compute_dtype=precision), rows=count)
    engine.settle()

    def turn(tokens: int) -> None:
        choosers = [Chooser(GREEDY, seed=1, index=index) for index in range(count)]
        for _ in range(count):
            engine.add(PROMPT)
        following = [PROMPT[-1]] * count
        for _ in range(tokens):
            following = choose(engine.step(following), choosers)
        for row in reversed(range(count)):
            engine.remove(row)

    return turn


def theirs(shape: Shape, precision: torch.dtype, count: int) -> Callable[[int], None]:
    """A turn of transformers' `generate` on the same shape."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": shape.layers, "n_embd": shape.width, "n_head": shape.heads, "n_positions": shape.context}
    model = GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=shape.vocab)).to(precision).eval()
    model.generation_config.eos_token_id = None
    prompts = torch.tensor([PROMPT] * count)

    def turn(tokens: int) -> None:
        mask = torch.ones_like(prompts)
        written = model.generate(prompts, attention_mask=mask, do_sample=False, max_new_tokens=tokens, pad_token_id=0)
        assert written.shape == (count, len(PROMPT) + tokens)

    return turn


if __name__ == "__main__":
    main()
