"""The whole decoder: tokens in, logits out.

The families of Hugging Face models (vitrine/families/) are this one class with other data. The residual stream and the
norms have the parameters' own number format, float32 (float64 after `.double()`); matrix products run in
`Decoder.compute_dtype`.

Shapes: batch, seq (tokens), d_model, n_heads, n_kv_heads, head_dim, d_ff, vocab_size.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitrine.config import ModelConfig
from vitrine.model.inventory import inventory
from vitrine.randomness import keyed_generator

# Up to this context the processor keeps what attention computed for the backward pass; beyond it, memory matters more.
CUSTOM_AUTOGRAD_CONTEXT = 512
QUERIES_AT_ONCE = 64  # CausalAttention takes this many, and the keys up to the last of them


class Decoder(nn.Module):
    """A decoder-only transformer.

    Call it with tokens (batch, seq) of int64; it returns logits (batch, seq, vocab_size) of `compute_dtype`.
    `dropout_keys` (batch,) of int32, one key per row, switches dropout on: equal keys drop equal activations.
    `recompute`: the backward pass computes each block's activations again, so that they need not be kept.
    """

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.recompute = False
        self.embedding = Embedding(config.vocab_size, config.d_model)
        if config.family.positions == "learned":
            self.positions = Embedding(config.context, config.d_model)
        else:
            cos, sin = rope_table(config.context, config.head_dim, config.rope_base)
            self.register_buffer("rope_cos", cos, persistent=False)
            self.register_buffer("rope_sin", sin, persistent=False)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.final_norm = norm(config, config.d_model)
        if not config.tie_embeddings:
            self.head = Linear(config.d_model, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor, dropout_keys: Tensor | None = None) -> Tensor:
        """Logits of the next token after each token given."""
        seq = tokens.shape[1]
        x = self.embedding(tokens)  # (batch, seq, d_model)
        if self.config.family.positions == "learned":
            x = x + self.positions.weight[:seq]
            rope = None
        else:
            rope = self.rope_cos[:seq], self.rope_sin[:seq]
        x = dropout(x, self.config.dropout, dropout_keys, place=0)
        mask = causal_mask(seq, x.device)
        for block in self.blocks:
            inputs = (x, mask, rope, dropout_keys, self.compute_dtype)
            if self.recompute and torch.is_grad_enabled():
                # No generator is used: dropout is keyed, and so the same both times.
                x = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(*inputs)
        x = self.final_norm(x).to(self.compute_dtype)
        # (batch, seq, vocab_size)
        return F.linear(x, self.embedding.weight.to(x.dtype)) if self.config.tie_embeddings else self.head(x)


class Block(nn.Module):
    """Attention, then MLP, each reading the residual stream and adding to it; a norm stands before or after each."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.dropout = config.dropout
        before, after = (nn.Identity, norm) if config.family.norm_after else (norm, nn.Identity)
        self.attention_norm = before(config, config.d_model)
        self.attention = Attention(config)
        self.post_attention_norm = after(config, config.d_model)
        self.mlp_norm = before(config, config.d_model)
        self.mlp = MLP(config)
        self.post_mlp_norm = after(config, config.d_model)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        dropout_keys: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """(batch, seq, d_model) in, the same shape out."""
        attended = self.post_attention_norm(self.attention(self.attention_norm(x).to(dtype), mask, rope))
        x = x + dropout(attended, self.dropout, dropout_keys, place=2 * self.layer + 1)
        thought = self.post_mlp_norm(self.mlp(self.mlp_norm(x).to(dtype)))
        return x + dropout(thought, self.dropout, dropout_keys, place=2 * self.layer + 2)


class Attention(nn.Module):
    """Each token looks at earlier ones: a query against their keys weighs their values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        self.custom_autograd = config.context <= CUSTOM_AUTOGRAD_CONTEXT
        kv_width = config.n_kv_heads * config.head_dim
        self.query = Linear(config.d_model, config.attention_width, config.has_bias("attention.query"))
        self.key = Linear(config.d_model, kv_width, config.has_bias("attention.key"))
        self.value = Linear(config.d_model, kv_width, config.has_bias("attention.value"))
        self.output = Linear(config.attention_width, config.d_model, config.has_bias("attention.output"))
        self.normalised = config.family.query_key_norm
        if self.normalised:
            one_head = self.normalised == "head"
            self.query_norm = norm(config, config.head_dim if one_head else config.attention_width)
            self.key_norm = norm(config, config.head_dim if one_head else kv_width)

    def forward(self, x: Tensor, mask: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """(batch, seq, d_model) in, the same shape out; mask is (seq, seq), 0 or -inf."""
        batch, seq, _ = x.shape
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.normalised == "heads":
            q, k = self.query_norm(q), self.key_norm(k)
        q, k, v = (each.view(batch, seq, -1, self.head_dim) for each in (q, k, v))
        if self.normalised == "head":
            q, k = self.query_norm(q), self.key_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (batch, heads, seq, head_dim)
        if rope:
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        q, k = q.to(x.dtype), k.to(x.dtype)
        mixed = self._attend(q, k, v, mask)  # (batch, n_heads, seq, head_dim)
        return self.output(mixed.transpose(1, 2).reshape(batch, seq, -1))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        if q.device.type == "cpu" and self.custom_autograd:
            return attend(q, k, v, mask)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


class MLP(nn.Module):
    """Each token by itself: expand, bend, shrink."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gated = config.family.gated
        self.expand = Linear(config.d_model, config.d_ff, config.has_bias("mlp.expand"))
        if self.gated:
            self.gate = Linear(config.d_model, config.d_ff, config.has_bias("mlp.gate"))
        self.shrink = Linear(config.d_ff, config.d_model, config.has_bias("mlp.shrink"))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, seq, d_model) in, the same shape out."""
        if self.gated:
            return self.shrink(F.silu(self.gate(x)) * self.expand(x))
        return self.shrink(F.gelu(self.expand(x), approximate="tanh"))


class Embedding(nn.Module):
    """A learned row of numbers for each token (or position). weight: (rows, width)."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, ids: Tensor) -> Tensor:
        """(...) of int64 to (..., width) of float32."""
        return F.embedding(ids, self.weight)


class Linear(nn.Module):
    """Weighted sums of the inputs, computed in the input's own number format.

    weight: (out_features, in_features); bias: (out_features,), where the family has one.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class RMSNorm(nn.Module):
    """Divide by the root mean square, multiply by a learned gain.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.gain = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape whose last axis is `width`."""
        return RootMeanSquare.apply(x.to(self.gain.dtype), self.epsilon) * self.gain  # type: ignore[no-untyped-call]


class RootMeanSquare(torch.autograd.Function):
    """Custom autograd: x divided by its root mean square over the last axis.

    On a processor this is twice as fast as torch's own, which is made of single operations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> Tensor:
        """n = x * scale, with scale = 1 / sqrt(mean(x^2) + epsilon)."""
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().mul_(1 / x.shape[-1])
        scale = mean_square.add_(epsilon).rsqrt_()
        normalised = x * scale
        ctx.save_for_backward(normalised, scale)
        return normalised

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """dx = scale * (dn - n * mean(n * dn))."""
        normalised, scale = ctx.saved_tensors
        along = (normalised * gradient).mean(-1, keepdim=True)
        return torch.addcmul(gradient, normalised, along, value=-1).mul_(scale), None


class LayerNorm(nn.Module):
    """Subtract the mean, divide by the standard deviation; learned gain and bias.

    Source: Ba et al. 2016, arXiv:1607.06450.
    """

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.gain = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape whose last axis is `width`."""
        return F.layer_norm(x.to(self.gain.dtype), self.gain.shape, self.gain, self.bias, self.epsilon)


def initialise(config: ModelConfig, seed: int, compute_dtype: torch.dtype = torch.float32) -> Decoder:
    """A new decoder with random weights from the seed; `inventory` says how each tensor is initialised.

    Each tensor is drawn by its own generator, keyed by (seed, name), on the CPU in float32.
    """
    model = Decoder(config, compute_dtype)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for tensor in inventory(config):
            parameter = parameters[tensor.name]
            if tensor.initialisation == "normal":
                numbers = keyed_generator(seed, "birth", tensor.name).standard_normal(tensor.shape, np.float32)
                parameter.copy_(torch.from_numpy(numbers)).mul_(tensor.std)
            else:
                parameter.fill_(1.0 if tensor.initialisation == "ones" else 0.0)
    return model


def norm(config: ModelConfig, width: int) -> nn.Module:
    """The norm of the family."""
    kind = {"LayerNorm": LayerNorm, "RMSNorm": RMSNorm}[config.family.norm]
    return kind(width, config.norm_epsilon)


def causal_mask(seq: int, device: torch.device) -> Tensor:
    """(seq, seq): 0 where a token may look, -inf at the tokens after it."""
    mask = torch.full((seq, seq), float("-inf"), device=device)
    return mask.triu_(diagonal=1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention by a custom autograd; see `CausalAttention`.

    Args:
        q: (batch, n_heads, seq, head_dim).
        k, v: (batch, n_kv_heads, seq, head_dim); n_kv_heads divides n_heads.
        mask: (seq, seq), added to the scores.

    Returns:
        (batch, n_heads, seq, head_dim).

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1.
    """
    n_heads = q.shape[1]
    if k.shape[1] != n_heads:
        k = k.repeat_interleave(n_heads // k.shape[1], dim=1)
        v = v.repeat_interleave(n_heads // v.shape[1], dim=1)
    mixed: Tensor = CausalAttention.apply(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), mask)  # type: ignore[no-untyped-call]
    return mixed.view(q.shape)


class CausalAttention(torch.autograd.Function):
    """Custom autograd: softmax(q k^T / sqrt(head_dim) + mask) v, some queries at a time.

    No product is made with keys that lie after all of these queries: at a context of 256 that is nearly half of them.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """q, k, v: (batch * n_heads, seq, head_dim); mask: (seq, seq), -inf at the tokens after each."""
        ctx.scale = q.shape[-1] ** -0.5
        mask, mixed, patterns = mask.to(q.dtype), torch.empty_like(q), []
        for here, seen in causal_parts(q.shape[1]):
            scores = torch.baddbmm(mask[here, seen], q[:, here], k[:, seen].transpose(1, 2), alpha=ctx.scale)
            patterns.append(scores.softmax(-1))
            mixed[:, here] = torch.bmm(patterns[-1], v[:, seen])
        ctx.save_for_backward(q, k, v, *patterns)
        return mixed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """With p the pattern: dv = p^T dm; ds = p * (dp - sum(p * dp)), dp = dm v^T; dq = ds k, dk = ds^T q, scaled."""
        q, k, v, *patterns = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (here, seen), pattern in zip(causal_parts(q.shape[1]), patterns, strict=True):
            dv[:, seen].baddbmm_(pattern.transpose(1, 2), gradient[:, here])
            dpattern = torch.bmm(gradient[:, here], v[:, seen].transpose(1, 2))
            dscores = torch._softmax_backward_data(dpattern, pattern, -1, pattern.dtype)
            dq[:, here] = torch.bmm(dscores, k[:, seen])
            dk[:, seen].baddbmm_(dscores.transpose(1, 2), q[:, here])
        return dq.mul_(ctx.scale), dk.mul_(ctx.scale), dv, None


def causal_parts(seq: int) -> list[tuple[slice, slice]]:
    """Queries that are taken together, with the keys that the last of them may look at."""
    stops = [min(start + QUERIES_AT_ONCE, seq) for start in range(0, seq, QUERIES_AT_ONCE)]
    return [(slice(start, stop), slice(0, stop)) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]


def rope_table(context: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, each (context, head_dim), the two halves alike."""
    frequencies = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(context, dtype=torch.float32), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair of channels by an angle proportional to position.

    Args:
        x: (batch, heads, seq, head_dim); channel i is paired with channel i + head_dim / 2.
        cos, sin: (seq, head_dim); the two halves are alike.

    Returns:
        Same shape; vector norms are unchanged.

    Source: Su et al. 2021, RoFormer, arXiv:2104.09864, section 3.4.
    """
    return Rotation.apply(x, cos, sin)  # type: ignore[no-untyped-call]


class Rotation(torch.autograd.Function):
    """Rotate forward; gradients rotate back by the same angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(first, second) to (first cos - second sin, second cos + first sin)."""
        ctx.save_for_backward(cos, sin)
        return rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The rotation by the opposite angle."""
        cos, sin = ctx.saved_tensors
        return rotate(gradient, cos, -sin), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotation itself; see `apply_rope`."""
    half = x.shape[-1] // 2
    rotated = x * cos
    rotated[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    rotated[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return rotated


def dropout(x: Tensor, rate: float, dropout_keys: Tensor | None, place: int) -> Tensor:
    """Zero a share `rate` of x and scale up the rest, as the keys in `dropout_keys` (batch,) say.

    Which activations fall is a function of (key of the row, place in the model, position in the row)
    alone, the same on every device and for any split of the batch. The share is met to 1 / 65,536.
    """
    if dropout_keys is None or rate == 0:
        return x
    count, fall = x[0].numel(), round(rate * 2**16)
    bits = random_bits(dropout_keys, place, -(-count // 2)).view(torch.int16)[:, :count]  # half of an int32 each
    return x * (bits >= fall - 2**15).view(x.shape) / (1 - fall / 2**16)


def random_bits(dropout_keys: Tensor, place: int, count: int) -> Tensor:
    """(batch, count) of int32, uniform over all int32: a counter, mixed by multiply and xor-shift.

    The constants are those of a published low-bias 32-bit mixer (C. Wellons, hash-prospector).
    """
    counter = torch.arange(count, dtype=torch.int32, device=dropout_keys.device) * -1640531527
    x = counter + _mix(dropout_keys ^ (place * 0x3C6EF372 & 0x7FFFFFFF))[:, None]
    return _mix(x)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ (x >> 16 & 0xFFFF)) * 0x21F0AAAD
    x = (x ^ (x >> 15 & 0x1FFFF)) * 0x735A2D97
    return x ^ (x >> 15 & 0x1FFFF)
