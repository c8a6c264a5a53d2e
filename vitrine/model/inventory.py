"""What a choice of hyperparameters comes to, before any training: tensors, FLOPs, memory. Needs no torch."""

import math
from dataclasses import dataclass
from typing import Literal

from vitrine.config import Config, ModelConfig
from vitrine.optimizers.registry import OPTIMIZERS

Kind = Literal["embedding", "weight", "bias", "gain"]


@dataclass(frozen=True)
class TensorSpec:
    """What one tensor of parameters will be.

    initialisation: "normal", "zeros" or "ones"; std: the standard deviation where that is normal.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    initialisation: Literal["normal", "zeros", "ones"]
    std: float = 0.0

    @property
    def parameters(self) -> int:
        """How many learned numbers it holds."""
        return math.prod(self.shape)

    @property
    def hidden(self) -> bool:
        """Whether it is a matrix inside a block."""
        return is_hidden_matrix(self.name, self.shape)


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

    gpt2: matrices normal, standard deviation 0.02; those that write into the residual stream 0.02 / sqrt(2 n_layers).
    llama, qwen3: matrices that read the residual stream normal, 1 / sqrt(d_model); those that write into it
    zero, so that every block starts as the identity; embedding 1 (0.02 if tied), head 0.001.
    Gains are one and biases zero everywhere. `model.init_scale` multiplies every standard deviation.
    """
    gpt2 = model.architecture == "gpt2"
    d, q, kv = model.d_model, model.attention_width, model.n_kv_heads * model.head_dim
    read = 0.02 if gpt2 else d**-0.5
    write = 0.02 / math.sqrt(2 * model.n_layers) if gpt2 else 0.0
    tensors: list[TensorSpec] = []

    def matrix(name: str, shape: tuple[int, int], std: float, kind: Kind = "weight") -> None:
        std *= model.init_scale
        tensors.append(TensorSpec(name, shape, kind, "normal" if std else "zeros", std))

    def linear(name: str, outputs: int, inputs: int, std: float) -> None:
        matrix(f"{name}.weight", (outputs, inputs), std)
        if model.bias:
            tensors.append(TensorSpec(f"{name}.bias", (outputs,), "bias", "zeros"))

    def norm(name: str, width: int) -> None:
        tensors.append(TensorSpec(f"{name}.gain", (width,), "gain", "ones"))
        if gpt2:
            tensors.append(TensorSpec(f"{name}.bias", (width,), "bias", "zeros"))

    matrix("embedding.weight", (model.vocab_size, d), 0.02 if model.tie_embeddings else 1.0, "embedding")
    if gpt2:
        matrix("positions.weight", (model.context, d), 0.02, "embedding")
    for layer in range(model.n_layers):
        block = f"blocks.{layer}"
        norm(f"{block}.attention_norm", d)
        linear(f"{block}.attention.query", q, d, read)
        linear(f"{block}.attention.key", kv, d, read)
        linear(f"{block}.attention.value", kv, d, read)
        linear(f"{block}.attention.output", d, q, write)
        if model.architecture == "qwen3":
            norm(f"{block}.attention.query_norm", model.head_dim)
            norm(f"{block}.attention.key_norm", model.head_dim)
        norm(f"{block}.mlp_norm", d)
        linear(f"{block}.mlp.expand", model.d_ff, d, read)
        if model.gated:
            linear(f"{block}.mlp.gate", model.d_ff, d, read)
        linear(f"{block}.mlp.shrink", d, model.d_ff, write)
    norm("final_norm", d)
    if not model.tie_embeddings:
        matrix("head.weight", (model.vocab_size, d), 0.001)
    return tuple(tensors)


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
    mlp = (4 if model.gated else 2) * narrow * model.d_ff
    # Of a large vocabulary (vitrine/loss.py) there are the logits and their gradient, else float32 copies, too.
    large = config.training.batch_size * model.context * model.vocab_size > 2**24
    logits = (2 * narrow if large else 2 * 4 + 4 + narrow) * model.vocab_size
    block = residual_stream + heads + scores + mlp
    if config.machine.recompute:
        return model.n_layers * 4 * model.d_model + block + logits
    return model.n_layers * block + logits
