"""A second forward pass with hooks: activations, attention, the logit lens. Never part of training.

The decoder runs once more, eagerly and with the same dropout, with hooks on its modules. Attention weights are worked
out again, in float32 with an explicit softmax; `Probe.attention_difference` and `Probe.difference` say how far this
pass is from what the model itself computed.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitrine.model.decoder import Attention, Block, Decoder, apply_rope, causal_mask

Floats = NDArray[np.float32]


@dataclass
class Probe:
    """What a probing pass saw, of a batch and of one of its rows.

    stream_norms: (n_layers + 1,) mean norm of the residual stream after the embedding and after each block.
    dead: (n_layers,) share of MLP units whose gate (without one: whose input) was above zero for no token of the batch.
    attention: (n_layers, n_heads, seq, seq) of the row; a line says how much a token attends to each earlier one.
    entropy: (n_layers, n_heads) mean over the row of each head's uncertainty, as a share of the largest possible.
    scores: (n_layers, n_heads) largest magnitude of an attention score before softmax, over the batch.
    streams: (n_layers + 1, seq, d_model) of the row. logits: (seq, vocab_size) of the row.
    attention_difference: largest difference between what these weights mix and what the model mixed.
    difference: largest difference between `logits` and those of the pass that is looked at; NaN: not compared.
    """

    stream_norms: Floats
    dead: Floats
    attention: Floats
    entropy: Floats
    scores: Floats
    streams: Floats
    logits: Floats
    attention_difference: float
    difference: float = math.nan


@torch.no_grad()
def probe(decoder: Decoder, inputs: Tensor, dropout_keys: Tensor | None, row: int = 0) -> Probe:
    """Run the decoder over (batch, seq) tokens, and look.

    Args:
        dropout_keys: (batch,) of the rows, as training had them; None: without dropout.
        row: which row's attention, residual streams and logits are kept.
    """
    streams: list[Tensor] = []
    parts: dict[str, Tensor] = {}
    with _hooks(decoder, streams, parts):
        logits = decoder(inputs, dropout_keys)
    weights, entropy, scores, difference = [], [], [], 0.0
    for layer, block in enumerate(decoder.blocks):
        assert isinstance(block, Block)
        found = _attention(decoder, block.attention, parts, layer, row)
        weights.append(found[0])
        entropy.append(_entropy(found[0]))
        scores.append(found[1])
        difference = max(difference, found[2])
    gates = [parts[f"{layer}.gate"] for layer in range(len(decoder.blocks))]
    return Probe(
        stream_norms=_floats(torch.stack([stream.float().norm(dim=-1).mean() for stream in streams])),
        dead=_floats(torch.stack([(gate.flatten(0, 1).amax(0) <= 0).float().mean() for gate in gates])),
        attention=_floats(torch.stack(weights)),
        entropy=_floats(torch.stack(entropy)),
        scores=_floats(torch.stack(scores)),
        streams=_floats(torch.stack([stream[row] for stream in streams])),
        logits=_floats(logits[row]),
        attention_difference=difference,
    )


@torch.no_grad()
def lens(decoder: Decoder, streams: Floats) -> Floats:
    """The logit lens: residual streams (..., d_model) read as if they were the last. (..., vocab_size)."""
    x = decoder.final_norm(torch.from_numpy(streams).to(decoder.embedding.weight.device)).to(decoder.compute_dtype)
    head = decoder.embedding if decoder.config.tie_embeddings else decoder.head
    return _floats(torch.nn.functional.linear(x, head.weight.to(x.dtype)))


@torch.no_grad()
def inputs_of(
    decoder: Decoder, module: nn.Module, inputs: Tensor, dropout_keys: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What one linear layer is given, and what it answers, in a pass over (batch, seq) tokens."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(lambda _, given, answer: seen.append((given[0], answer)))
    try:
        decoder(inputs, dropout_keys)
    finally:
        handle.remove()
    return seen[0]


@contextmanager
def _hooks(decoder: Decoder, streams: list[Tensor], parts: dict[str, Tensor]) -> Iterator[None]:
    """Collect the residual stream before the first block and after each, and by layer the parts of attention and MLP."""

    def keep(name: str) -> Callable[..., None]:
        return lambda module, given, answer: parts.__setitem__(name, answer)

    def keep_input(name: str) -> Callable[..., None]:
        return lambda module, given: parts.__setitem__(name, given[0])

    handles: list[Any] = []
    for layer, block in enumerate(decoder.blocks):
        assert isinstance(block, Block)
        attention, mlp = block.attention, block.mlp
        if layer == 0:
            handles.append(block.register_forward_pre_hook(lambda module, given: streams.append(given[0])))
        handles.append(block.register_forward_hook(lambda module, given, answer: streams.append(answer)))
        query, key = (
            (attention.query_norm, attention.key_norm) if attention.normalised else (attention.query, attention.key)
        )
        handles.append(query.register_forward_hook(keep(f"{layer}.query")))
        handles.append(key.register_forward_hook(keep(f"{layer}.key")))
        handles.append(attention.value.register_forward_hook(keep(f"{layer}.value")))
        handles.append(attention.output.register_forward_pre_hook(keep_input(f"{layer}.mixed")))
        gate = mlp.gate if mlp.gated else mlp.expand
        handles.append(gate.register_forward_hook(keep(f"{layer}.gate")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attention(
    decoder: Decoder, attention: Attention, parts: dict[str, Tensor], layer: int, row: int
) -> tuple[Tensor, Tensor, float]:
    """One layer: weights (n_heads, seq, seq) of the row, largest score by head, and how far off the mixture is."""
    batch, seq = parts[f"{layer}.query"].shape[:2]
    q = parts[f"{layer}.query"].view(batch, seq, attention.n_heads, -1).transpose(1, 2)
    k = parts[f"{layer}.key"].view(batch, seq, attention.n_kv_heads, -1).transpose(1, 2)
    v = parts[f"{layer}.value"].view(batch, seq, attention.n_kv_heads, -1).transpose(1, 2)
    if decoder.config.family.positions == "rotary":
        rope = decoder.rope_cos[:seq], decoder.rope_sin[:seq]
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
    dtype = v.dtype
    q, k = q.to(dtype).float(), k.to(dtype).float()  # as the model rounds them
    group = attention.n_heads // attention.n_kv_heads
    k, v = k.repeat_interleave(group, 1), v.float().repeat_interleave(group, 1)
    scores = q @ k.transpose(-1, -2) / math.sqrt(attention.head_dim)  # (batch, n_heads, seq, seq)
    mask = causal_mask(seq, scores.device)
    weights = (scores[row] + mask).softmax(-1)
    mixed = (weights @ v[row]).transpose(0, 1).reshape(seq, -1)
    difference = float((mixed - parts[f"{layer}.mixed"][row].float()).abs().max())
    allowed = (mask == 0).expand_as(scores)
    return weights, scores.masked_fill(~allowed, 0).abs().amax((0, 2, 3)), difference


def _entropy(weights: Tensor) -> Tensor:
    """(n_heads,) of (n_heads, seq, seq): uncertainty of each line over the most that it could have, averaged."""
    nats = -(weights * weights.clamp_min(1e-30).log()).sum(-1)  # (n_heads, seq)
    most = torch.arange(1, weights.shape[-1] + 1, device=weights.device).log()
    return (nats[:, 1:] / most[1:]).mean(-1)


def _floats(tensor: Tensor) -> Floats:
    return tensor.float().cpu().numpy()
