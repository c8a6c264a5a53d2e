"""What a choice of hyperparameters comes to, before any training: tensors, FLOPs, memory. Needs no torch."""

import json
import math
from dataclasses import dataclass, fields, replace
from typing import Literal

from vitrine.config import Config, ModelConfig
from vitrine.optimizers.registry import OPTIMIZERS

Kind = Literal["embedding", "weight", "bias", "gain"]
Initialisation = Literal["normal", "zeros", "ones"]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of parameters. A run folder has them as the fact `tensors`: see docs/run-format.md.

    initialisation: "normal", "zeros" or "ones"; std: the standard deviation where that is normal.
    block: which one it is in; None: none. part: what of the model, or of the block, it belongs to.
    owner: the tensor whose numbers these are, where they are tied; empty: its own.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    initialisation: Initialisation
    std: float = 0.0
    block: int | None = None
    part: str = ""
    owner: str = ""
    dtype: str = "float32"

    @property
    def parameters(self) -> int:
        """How many learned numbers it holds."""
        return math.prod(self.shape)

    @property
    def hidden(self) -> bool:
        """Whether it is a matrix inside a block."""
        return self.block is not None and len(self.shape) == 2

    @property
    def home(self) -> str:
        """The part of the model that it is in: its block, or what stands outside of them."""
        return self.part if self.block is None else f"blocks.{self.block}"


@dataclass(frozen=True)
class Plan:
    """The sums. Bytes and floating-point operations; activations are an estimate, the rest is exact."""

    tensors: tuple[TensorSpec, ...]
    flops_per_token: int
    memory: dict[str, int]
    keyframe_bytes: int
    tokens_per_step: int
    available_bytes: int

    @property
    def parameters(self) -> int:
        """All learned numbers; a tied head is counted once."""
        return sum(tensor.parameters for tensor in self.tensors)

    @property
    def memory_bytes(self) -> int:
        """Memory that training needs, all parts together."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether that is less than the machine has (a tenth kept for everything else)."""
        return self.memory_bytes < 0.9 * self.available_bytes


def is_hidden_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is a matrix inside a block: what Muon updates."""
    return name.startswith("blocks.") and len(shape) == 2


def inventory(model: ModelConfig) -> tuple[TensorSpec, ...]:
    """Every tensor of the model, in reading order, and how it is initialised.

    Its family says by which standard deviations; `model.init_scale` multiplies them. Gains are one and biases zero.
    """
    family, tensors, stds = model.family, list[TensorSpec](), model.family.stds(model)
    d, q, kv = model.d_model, model.attention_width, model.n_kv_heads * model.head_dim
    one_head = family.query_key_norm == "head"

    def add(
        block: int | None, part: str, end: str, shape: tuple[int, ...], kind: Kind, std: float | None = None
    ) -> None:
        name = f"{part}.{end}" if block is None else f"blocks.{block}.{part}.{end}"
        std = std and std * model.init_scale
        initialisation: Initialisation = "ones" if kind == "gain" else "normal" if std else "zeros"
        tensors.append(TensorSpec(name, shape, kind, initialisation, std or 0.0, block, part))

    def linear(block: int, part: str, outputs: int, inputs: int, std: float) -> None:
        add(block, part, "weight", (outputs, inputs), "weight", std)
        if model.has_bias(part):
            add(block, part, "bias", (outputs,), "bias")

    def norm(block: int | None, part: str, width: int) -> None:
        add(block, part, "gain", (width,), "gain")
        if family.norm == "LayerNorm":
            add(block, part, "bias", (width,), "bias")

    add(None, "embedding", "weight", (model.vocab_size, d), "embedding", stds.embedding)
    if family.positions == "learned":
        add(None, "positions", "weight", (model.context, d), "embedding", stds.embedding)
    for block in range(model.n_layers):
        if not family.norm_after:
            norm(block, "attention_norm", d)
        linear(block, "attention.query", q, d, stds.read)
        linear(block, "attention.key", kv, d, stds.read)
        linear(block, "attention.value", kv, d, stds.read)
        linear(block, "attention.output", d, q, stds.write)
        if family.query_key_norm:
            norm(block, "attention.query_norm", model.head_dim if one_head else q)
            norm(block, "attention.key_norm", model.head_dim if one_head else kv)
        norm(block, "post_attention_norm" if family.norm_after else "mlp_norm", d)
        linear(block, "mlp.expand", model.d_ff, d, stds.read)
        if family.gated:
            linear(block, "mlp.gate", model.d_ff, d, stds.read)
        linear(block, "mlp.shrink", d, model.d_ff, stds.write)
        if family.norm_after:
            norm(block, "post_mlp_norm", d)
    norm(None, "final_norm", d)
    if not model.tie_embeddings:
        add(None, "head", "weight", (model.vocab_size, d), "weight", stds.head)
    return tuple(tensors)


def tensor_fact(model: ModelConfig) -> str:
    """The fact `tensors`: every tensor, also a tied one, as JSON. `read_tensors` reads it back."""
    tensors = list(inventory(model))
    if model.tie_embeddings:
        table = tensors[0]
        tensors.append(replace(table, name="head.weight", kind="weight", part="head", owner=table.name))
    return json.dumps([vars(tensor) for tensor in tensors])


def read_tensors(fact: str) -> tuple[TensorSpec, ...]:
    """The tensors of the fact. Keys that a later version may add are passed over."""
    keys = [field.name for field in fields(TensorSpec)]
    return tuple(
        TensorSpec(**{key: told[key] for key in keys if key in told} | {"shape": tuple(told["shape"])})
        for told in json.loads(fact)
    )


def make_plan(config: Config, available_bytes: int) -> Plan:
    """Add it all up for one process, on a device with so much memory."""
    tensors = inventory(config.model)
    memory = memory_parts(config)
    return Plan(
        tensors=tensors,
        flops_per_token=flops_per_token(config.model),
        memory=memory,
        keyframe_bytes=memory["parameters"] + memory["optimizer"],
        tokens_per_step=config.tokens_per_step,
        available_bytes=available_bytes,
    )


def memory_parts(config: Config) -> dict[str, int]:
    """Bytes that one process needs for training, by part; activations are an estimate, the rest is exact."""
    tensors = inventory(config.model)
    count = sum(tensor.parameters for tensor in tensors)
    return {
        "parameters": 4 * count,
        "gradients": 4 * count,
        "optimizer": 4 * optimizer_numbers(config, tensors),
        "activations": config.training.batch_size * config.model.context * activation_bytes_per_token(config),
    }


def flops_per_token(model: ModelConfig) -> int:
    """Floating-point operations of training on one token: forward, and twice that for backward.

    Two for each weight that multiplies (a tied head multiplies too), and two for each channel of each pair
    of query and key, and of attention and value, over a whole context.
    """
    weights = sum(t.parameters for t in inventory(model) if t.kind == "weight")
    head = model.vocab_size * model.d_model if model.tie_embeddings else 0
    attention = 4 * model.n_layers * model.context * model.attention_width
    return 3 * (2 * (weights + head) + attention)


def optimizer_numbers(config: Config, tensors: tuple[TensorSpec, ...]) -> int:
    """How many numbers of memory the optimizer keeps: its state."""
    return sum(tensor.parameters * len(optimizer_memory(config, tensor)) for tensor in tensors)


def optimizer_memory(config: Config, tensor: TensorSpec) -> tuple[str, ...]:
    """What the optimizer remembers of each parameter of a tensor, by name."""
    return OPTIMIZERS[config.optimizer.name].memory(config.optimizer, tensor.hidden)


def activation_bytes_per_token(config: Config) -> int:
    """An estimate of what the forward pass keeps for the backward pass, for one token of a micro-batch."""
    model = config.model
    narrow = 2 if config.training.precision == "bfloat16" else 4
    q, kv = model.attention_width, model.n_kv_heads * model.head_dim
    residual_stream = 4 * 4 * model.d_model + 2 * narrow * model.d_model
    heads = (narrow + 4) * 2 * (q + kv) + 2 * narrow * q
    scores = 2 * narrow * model.n_heads * model.context
    mlp = (4 if model.family.gated else 2) * narrow * model.d_ff
    # Of a large vocabulary (vitrine/model/loss.py) there are the logits and their gradient, else float32 copies, too.
    large = config.training.batch_size * model.context * model.vocab_size > 2**24
    logits = (2 * narrow if large else 2 * 4 + 4 + narrow) * model.vocab_size
    block = residual_stream + heads + scores + mlp
    if config.machine.recompute:
        return model.n_layers * 4 * model.d_model + block + logits
    return model.n_layers * block + logits
