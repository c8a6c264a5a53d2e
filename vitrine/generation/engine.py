"""Decoding: one token at a time, for a batch of texts, with one key-value cache.

`Engine` computes what `Decoder` does, laid out for speed: weights in the number format of the products and in the
processor's own order, query, key and value as one product. A text gets the same bits alone and in a batch: each product
has one of a few numbers of rows, and `Engine.settle` tests whether they agree on this machine. Where they do, a single
text is drafted some tokens ahead: the model reads all of them in one pass, which takes hardly longer than one token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrine.generation import batch_invariance
from vitrine.generation.cache import SPAN, Cache, Reach
from vitrine.generation.drafts import Ngrams
from vitrine.model.decoder import Attention, Block, Decoder, Embedding, LayerNorm, Linear, RMSNorm, rotate

SAFE_ROWS = 4  # in a product, before `settle`: MKL adds up fewer in another order
PADDING = 16  # a prompt's tokens are filled up to a multiple: the processor prepares a product for each size anew
DRAFTED = SAFE_ROWS - 1  # tokens that are read ahead of a text, at most

Attend = Callable[[int, Tensor], Tensor]  # attention of a layer: its index and heads to (rows, d_model)


class Engine:
    """A model with room for some texts at once. Text r is row r; when a row is removed, the last one takes its place.

    Args:
        model: its parameters are copied.
        rows: texts at once, at most.
        drafts: of how a text may continue; used once the engine has settled.
    """

    @torch.inference_mode()
    def __init__(self, model: Decoder, rows: int = 1, drafts: Ngrams | None = None) -> None:
        self.config, self.dtype = model.config, model.compute_dtype
        self.device = model.embedding.weight.device
        self.rows = rows
        self.sizes = [SAFE_ROWS]  # the numbers of rows that a product may have
        while self.sizes[-1] < rows:
            self.sizes.append(2 * self.sizes[-1])
        self.together = True  # whether the rows go through the model in one pass
        self.drafts, self.drafting = drafts, False  # whether they are used
        self._ahead: list[tuple[int, Tensor]] = []  # tokens that were drafted, and the logits after each
        self._read = torch.empty(0)
        self.windows: list[list[int]] = []  # of each row: the tokens that the model sees
        self.weights = _Weights(model)
        self.span = SPAN
        self.cache = Cache(model, self.sizes[-1])

    @property
    def cache_bytes(self) -> int:
        """What keys and values take when every row is full."""
        return self.cache.size_bytes

    @torch.inference_mode()
    def add(self, ids: Sequence[int]) -> int:
        """Begin a text; of its tokens, the last `context` count. Returns its row."""
        if not ids or len(self.windows) == self.rows:
            raise ValueError(f"{len(ids)} tokens for row {len(self.windows)} of {self.rows}")
        row, window = len(self.windows), list(ids[-self.config.context : -1])
        self.windows.append(window)
        self._fit()
        self._read = self._fill(row, window)
        return row

    @torch.inference_mode()
    def prompt_logits(self) -> Tensor:
        """(tokens - 1, vocab_size) of float32: what followed each token of the text added last, but the last one."""
        return self._logits(self._read) if len(self._read) else torch.empty(0, self.config.vocab_size)

    @torch.inference_mode()
    def fork(self, row: int) -> int:
        """Begin a text like one that was added and has had no step yet; nothing is computed. Returns its row."""
        new = len(self.windows)
        self.windows.append(list(self.windows[row]))
        self.cache.copy(row, new)
        return new

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        """End a text; the last row moves into its place."""
        self._ahead = []
        last = len(self.windows) - 1
        if row != last:
            self.windows[row] = self.windows[last]
            self.cache.copy(last, row)
        self.windows.pop()
        self._fit()

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Give every row its next token (to a new row, the last of its prompt).

        When the context is full, the older half is let go, and the rest is read again from position zero.

        Returns:
            (rows, vocab_size) of float32: logits of what comes next.
        """
        for window, token in zip(self.windows, tokens, strict=True):
            window.append(token)
        if self._ahead:
            (drafted, logits), *self._ahead = self._ahead
            if [drafted] == list(tokens):
                return logits
            self._ahead = []
        self._fit()
        for row, window in enumerate(self.windows):
            if len(window) > self.config.context:
                self.windows[row] = window = window[-max(1, self.config.context // 2) :]
                self._fill(row, window[:-1])
        if self.drafting and len(self.windows) == 1:
            return self._step_ahead(self.windows[0])
        positions = [len(window) - 1 for window in self.windows]
        if self.together:
            return self.decode(0, tokens, positions)
        one_by_one = [self.decode(row, tokens[row : row + 1], positions[row : row + 1]) for row in range(len(tokens))]
        return torch.cat(one_by_one)

    def _step_ahead(self, window: list[int]) -> Tensor:
        """A step of the only text, and in the same pass the steps that follow if its draft is chosen; (1, vocab_size)."""
        assert self.drafts
        drafted = self.drafts.draft(window, min(DRAFTED, self.config.context - len(window)))
        first = len(window) - 1
        logits = self.decode(0, [window[-1], *drafted], range(first, first + 1 + len(drafted)), ahead=True)
        self._ahead = [(token, logits[row : row + 1]) for row, token in enumerate(drafted, 1)]
        return logits[:1]

    @torch.inference_mode()
    def settle(self) -> str:
        """Find out how rows may share a product on this machine so that none depends on the others.

        Returns:
            In how many rows texts are decoded, for the log.
        """
        cache, self.cache, sizes = self.cache, batch_invariance.trial_cache(self.cache), self.sizes
        for fewer in ([1, 2], [2], []):
            self.sizes = [*fewer, *sizes]
            if batch_invariance.rows_agree(self):
                break
        else:
            self.sizes, self.span = sizes[-1:], cache.capacity
            if not batch_invariance.rows_agree(self):
                self.together, self.sizes = False, [1]
        self.cache = cache
        self.drafting = self.drafts is not None and self.together and batch_invariance.drafts_agree(self, DRAFTED)
        self._fit()
        return ", ".join(map(str, self.sizes))

    def round_up(self, length: int) -> int:
        """To a span: the places that attention looks at for a text of this length."""
        return -(-length // self.span) * self.span

    def _fit(self) -> None:
        """Give the cache the room that the longest text needs."""
        ahead = DRAFTED if self.drafting else 0
        span = self.round_up(max((len(window) for window in self.windows), default=1) + ahead)
        if not self.cache.span // 2 < span <= self.cache.span:
            self.cache.lay(min(span, self.cache.capacity), len(self.windows))

    def decode(self, first: int, tokens: Sequence[int], positions: Sequence[int], ahead: bool = False) -> Tensor:
        """Logits after one token each of the rows from `first` on; ahead: after successive tokens of that row only.

        Returns:
            (len(tokens), vocab_size).
        """
        count = len(tokens)
        size = next(size for size in self.sizes if size >= count)
        padding = [0] * (size - count)
        ids, at = torch.tensor([[*tokens, *padding], [*positions, *padding]]).to(self.device)
        one_row = ahead or count == 1
        reach = self.cache.row(first, positions) if one_row else self.cache.rows(first, positions, at[:count])
        return self._logits(self.weights(ids, at, self._attention(reach, count, size)))[:count]

    def _attention(self, reach: Reach, count: int, size: int) -> Attend:
        """Attention of the first `count` of `size` tokens to the cache."""
        n_heads, kv_heads, head_dim = self.config.n_heads, self.config.n_kv_heads, self.config.head_dim
        filled = torch.zeros(size, n_heads * head_dim, dtype=self.dtype, device=self.device)
        # The queries that share a key are side by side.
        given = filled[:count].view(count * kv_heads, -1, head_dim)
        queries, mixed = (given.new_empty(given.shape, dtype=self.cache.dtype) for _ in range(2))
        asked = queries.view(count, n_heads, head_dim)
        scores, shares = queries.new_empty(2, *given.shape[:2], self.cache.span)
        by_mask = (each.chunk(len(reach.masks)) for each in (queries, scores, shares, mixed))
        parts = [*zip(reach.masks, *by_mask, strict=True)]

        def attend(layer: int, heads: Tensor) -> Tensor:
            heads = heads[:count]
            asked.copy_(heads[:, :n_heads])
            reach.write(layer, heads[:, n_heads:].view(count, 2, kv_heads, head_dim))
            keys, values = reach.views[layer]
            for mask, query, score, _, _ in parts:
                torch.baddbmm(mask, query, keys, alpha=head_dim**-0.5, out=score)
            torch.softmax(scores, -1, out=shares)
            for _, _, _, share, mix in parts:
                torch.bmm(share, values, out=mix)
            given.copy_(mixed)
            return filled

        return attend

    def _fill(self, row: int, ids: Sequence[int]) -> Tensor:
        """Read a text at once, into the cache of a row; (len(ids), d_model), after the final norm."""
        if not ids:
            return torch.empty(0, self.config.d_model, device=self.device)
        n_heads, n_kv_heads = self.config.n_heads, self.config.n_kv_heads
        size = -(-len(ids) // PADDING) * PADDING
        tokens = torch.tensor([*ids, *[0] * (size - len(ids))], device=self.device)
        at = torch.arange(size, device=self.device).clamp_(max=self.config.context - 1)

        def attend(layer: int, heads: Tensor) -> Tensor:
            q, k, v = heads.transpose(0, 1).split((n_heads, n_kv_heads, n_kv_heads))  # (heads, size, head_dim)
            keys, values = self.cache.layers[layer]
            keys[row, :, :size] = k
            values[row, :, :size] = v
            mixed = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True)
            return mixed[0].transpose(0, 1).reshape(size, -1)

        return self.weights(tokens, at, attend)[: len(ids)]

    def _logits(self, x: Tensor) -> Tensor:
        return self.weights.head(x.to(self.dtype)).float()


class Product:
    """Weighted sums, their weights copied into the order that the processor reads fastest; GELU of them, if asked for."""

    def __init__(self, dtype: torch.dtype, *parts: Linear | Embedding, gelu: bool = False) -> None:
        weight = torch.cat([part.weight.detach() for part in parts]).to(dtype)
        self.width = weight.shape[1]
        biases = [part.bias.detach() for part in parts if isinstance(part, Linear) and part.bias is not None]
        self.bias = torch.cat(biases).to(dtype) if biases else None
        self.gelu = gelu
        self.after: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")
        self.packed = _can_be_packed(weight)
        # oneDNN's own order: half the time of a plain matrix, in few rows.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, in_features) to (rows, out_features)."""
        if self.packed:
            y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, *self.after)
            return y
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y, approximate="tanh") if self.gelu else y


@dataclass
class _Layer:
    """One block's products and norms."""

    attention_norm: Callable[[Tensor], Tensor]
    query_key_value: Product
    query_key_norm: Callable[[Tensor], Tensor]
    output: Product
    post_attention_norm: Callable[[Tensor], Tensor]
    mlp_norm: Callable[[Tensor], Tensor]
    expand: Product  # in gated families: gate and expand
    shrink: Product
    post_mlp_norm: Callable[[Tensor], Tensor]


class _Weights:
    """The parameters of a model, ready for products; called, they are the model but for its attention and head."""

    def __init__(self, model: Decoder) -> None:
        config, dtype = model.config, model.compute_dtype
        self.config, self.dtype = config, dtype
        self.embedding = model.embedding.weight.detach().clone()
        self.layers = []
        for block in model.blocks:
            assert isinstance(block, Block)
            attention, mlp = block.attention, block.mlp
            self.layers.append(
                _Layer(
                    _norm(block.attention_norm),
                    Product(dtype, attention.query, attention.key, attention.value),
                    _query_key_norm(attention),
                    Product(dtype, attention.output),
                    _norm(block.post_attention_norm),
                    _norm(block.mlp_norm),
                    Product(dtype, mlp.gate, mlp.expand) if mlp.gated else Product(dtype, mlp.expand, gelu=True),
                    Product(dtype, mlp.shrink),
                    _norm(block.post_mlp_norm),
                )
            )
        self.final_norm = _norm(model.final_norm)
        self.head = Product(dtype, model.embedding if config.tie_embeddings else model.head)
        self.positions: Tensor | None = None
        if config.family.positions == "learned":
            self.positions = model.positions.weight.detach().clone()
        else:
            self.cos, self.sin = model.rope_cos[:, None], model.rope_sin[:, None]  # (context, 1, head_dim)

    def products(self) -> list[Product]:
        """One of each shape."""
        layer = self.layers[0]
        return [layer.query_key_value, layer.output, layer.expand, layer.shrink, self.head]

    def __call__(self, tokens: Tensor, at: Tensor, attend: Attend) -> Tensor:
        """(rows,) of tokens and their positions to (rows, d_model), after the final norm.

        attend: is given the layer and its queries, keys and values, (rows, n_heads + 2 n_kv_heads, head_dim);
        returns (rows, d_model).
        """
        turned, head_dim = self.config.n_heads + self.config.n_kv_heads, self.config.head_dim
        x = F.embedding(tokens, self.embedding)
        rope = None
        if self.positions is not None:
            x = x + F.embedding(at, self.positions)
        else:
            rope = self.cos[at], self.sin[at]
        for index, layer in enumerate(self.layers):
            heads = layer.query_key_value(layer.attention_norm(x).to(self.dtype)).view(len(x), -1, head_dim)
            if rope:
                heads[:, :turned] = rotate(layer.query_key_norm(heads[:, :turned]), *rope)
            x = x + layer.post_attention_norm(layer.output(attend(index, heads)))
            inner = layer.expand(layer.mlp_norm(x).to(self.dtype))
            if self.config.family.gated:
                gate, inner = inner.chunk(2, -1)
                inner = F.silu(gate) * inner
            x = x + layer.post_mlp_norm(layer.shrink(inner))
        return self.final_norm(x)


def _norm(norm: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    if isinstance(norm, torch.nn.Identity):
        return _unchanged
    if isinstance(norm, LayerNorm):
        width, epsilon, (gain, bias) = norm.gain.shape, norm.epsilon, _copies(norm.gain, norm.bias)
        return lambda x: torch.layer_norm(x, width, gain, bias, epsilon)
    assert isinstance(norm, RMSNorm)
    return _rms_norm(norm.gain.detach().clone(), norm.epsilon)


def _unchanged(x: Tensor) -> Tensor:
    return x


def _query_key_norm(attention: Attention) -> Callable[[Tensor], Tensor]:
    """The norms of the queries and of the keys, of (rows, n_heads + n_kv_heads, head_dim)."""
    if not attention.normalised:
        return _unchanged
    of_queries, of_keys = attention.query_norm, attention.key_norm
    assert isinstance(of_queries, RMSNorm)
    assert isinstance(of_keys, RMSNorm)
    if attention.normalised == "heads":
        norms, sizes = (_norm(of_queries), _norm(of_keys)), (attention.n_heads, attention.n_kv_heads)

        def normalise(qk: Tensor) -> Tensor:
            parts = zip(norms, qk.split(sizes, 1), sizes, strict=True)
            return torch.cat([norm(part.flatten(1)).unflatten(1, (size, -1)) for norm, part, size in parts], 1)

        return normalise
    q, k = _copies(of_queries.gain, of_keys.gain)
    gain = torch.cat([q.expand(attention.n_heads, -1), k.expand(attention.n_kv_heads, -1)])
    return _rms_norm(gain, of_queries.epsilon)


def _rms_norm(gain: Tensor, epsilon: float) -> Callable[[Tensor], Tensor]:
    def normalise(x: Tensor) -> Tensor:
        x = x.to(gain.dtype)
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().mul_(1 / x.shape[-1])
        normalised: Tensor = x * scale.add_(epsilon).rsqrt_() * gain
        return normalised

    return normalise


def _copies(*parameters: Tensor) -> tuple[Tensor, ...]:
    return tuple(parameter.detach().clone() for parameter in parameters)


def _can_be_packed(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight") or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
