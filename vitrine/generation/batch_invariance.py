"""Self-tests of an engine on this machine: does a text get the same bits alone and in a batch?

Where it does not, `Engine.settle` uses fewer sizes of products, or decodes one text at a time.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vitrine.generation.cache import SPAN, Cache

if TYPE_CHECKING:
    from vitrine.generation.engine import Engine, Product


def trial_cache(cache: Cache) -> Cache:
    """The same cache, but with one memory for all layers; each pass writes and reads it in order."""
    trial = copy.copy(cache)
    trial.memory = torch.zeros_like(cache.memory[:1]).expand_as(cache.memory)
    trial.lay(SPAN, 0)
    return trial


def rows_agree(engine: "Engine") -> bool:
    """Whether rows give the same bits in each of the sizes, padded or not, in another order, next to longer ones."""
    if not all(product_rows_agree(product, engine.sizes) for product in engine.weights.products()):
        return False
    count, context = engine.sizes[-1], engine.config.context
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(engine.config.vocab_size, (count,), generator=generator).tolist()
    positions = [context * row // count for row in range(count)]

    def decode(rows: Sequence[int]) -> Tensor:
        engine.cache.lay(engine.round_up(max(positions[row] for row in rows) + 1), 0)
        for place, row in enumerate(rows):
            _fill_randomly(engine.cache, place, positions[row], seed=row)
        return engine.decode(0, [tokens[row] for row in rows], [positions[row] for row in rows])

    whole, backwards = decode(range(count)), decode(range(count)[::-1])
    fewer = {*engine.sizes, *(size - 1 for size in engine.sizes), 1} - {0}
    return torch.equal(whole, backwards.flip(0)) and all(torch.equal(decode(range(n)), whole[:n]) for n in fewer)


def product_rows_agree(product: "Product", sizes: Sequence[int]) -> bool:
    """Whether a row gives the same bits in each of these numbers of rows, even where rounding would hide a difference.

    The bias cancels each sum, so that only the error of the order of additions is left: bfloat16 shows eight bits of it.
    """
    row = torch.randn(1, product.width, generator=torch.Generator().manual_seed(1)).to(product.weight)
    rest = copy.copy(product)
    rest.gelu, rest.after = False, ("none", [], "")
    rest.bias = None
    rest.bias = -rest(row.expand(sizes[-1], -1).contiguous())[0]
    whole = rest(row.expand(sizes[-1], -1).contiguous())
    return all(torch.equal(rest(row.expand(size, -1).contiguous()), whole[:size]) for size in sizes)


def drafts_agree(engine: "Engine", drafted: int) -> bool:
    """Whether up to `drafted` + 1 tokens in one pass have the same bits as one by one."""
    first = max(0, engine.config.context // 2 - drafted)
    count, positions = 1 + min(drafted, engine.config.context - 1), range(first, engine.config.context)
    tokens = [number % engine.config.vocab_size for number in range(count)]

    def begin() -> None:
        engine.cache.lay(engine.round_up(engine.config.context), 0)
        _fill_randomly(engine.cache, 0, first, seed=1)

    begin()
    singly = [engine.decode(0, [token], [at]) for token, at in zip(tokens, positions, strict=False)]
    begin()
    return torch.equal(torch.cat(singly), engine.decode(0, tokens, positions[:count], ahead=True))


def _fill_randomly(cache: Cache, row: int, length: int, seed: int) -> None:
    _, kv_heads, head_dim = cache.shape
    numbers = torch.randn(2, kv_heads, length, head_dim, generator=torch.Generator().manual_seed(seed))
    for part, some in zip(cache.layers[0], numbers, strict=True):
        part[row, :, :length] = some.to(part)
