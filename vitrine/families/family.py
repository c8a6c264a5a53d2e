"""What a family of models says of itself: the decoder, the inventory, export and import ask it. Needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from vitrine.errors import ConfigError

if TYPE_CHECKING:
    from vitrine.config import ModelConfig


@dataclass(frozen=True)
class Stds:
    """Standard deviations of the initial weights; zero: they start at zero.

    read: of matrices that read the residual stream; write: of those that write into it.
    """

    embedding: float
    read: float
    write: float
    head: float


class TheirConfig(Protocol):
    """The config.json of a Hugging Face folder; what is asked for is checked, and refused by name."""

    def count(self, key: str, otherwise: int | None = None) -> int:
        """A whole number from 1 up."""

    def number(self, key: str, otherwise: float) -> float:
        """A positive number."""

    def flag(self, key: str) -> bool:
        """True or false; false if it is not given."""

    def same_flag(self, *keys: str) -> bool:
        """Flags that must be equal."""

    def rope_base(self) -> float:
        """The base of the rotary angles, where they are not scaled."""


class Family:
    """A family of decoders. A subclass says what is different from llama, whose facts stand here.

    name: as in `model.architecture`; Hugging Face and llama.cpp call it the same.
    transformers_class, transformers_tokenizer: what opens it, and its tokenizer, in transformers.

    norm: LayerNorm, or RMSNorm. norm_after: whether it stands after attention and MLP, not before them.
    positions: a learned table, or rotary angles.
    gated: whether the MLP has a gate (SwiGLU); else GELU.
    biases: which linear layers have one where `model.bias` is true: all of a block, or query, key and value.
    query_key_norm: whether queries and keys are normalised: each head, or all heads together.
    grouped: whether heads may share keys and values. square: whether n_heads x head_dim must be d_model.
    fixed: hyperparameters of [model] with one possible value, and why.

    huggingface, gguf: the names of the tensors there, by part; {} is the number of the block.
    huggingface_turned: whether the matrices of blocks are (inputs, outputs) there.
    gguf_interleaved: whether llama.cpp rotates neighbouring channels. gguf_square, gguf_untied: whether it knows this family
        only with n_heads x head_dim = d_model, and only with a head of its own.
    supported: values that a config.json may have; with others, the model computes what the decoder does not.
    """

    name: ClassVar[str]
    transformers_class: ClassVar[str]
    transformers_tokenizer: ClassVar[str] = "AutoTokenizer"
    norm: ClassVar[Literal["LayerNorm", "RMSNorm"]] = "RMSNorm"
    norm_after: ClassVar[bool] = False
    positions: ClassVar[Literal["learned", "rotary"]] = "rotary"
    gated: ClassVar[bool] = True
    biases: ClassVar[Literal["all", "qkv"]] = "all"
    query_key_norm: ClassVar[Literal["", "head", "heads"]] = ""
    grouped: ClassVar[bool] = True
    square: ClassVar[bool] = False
    fixed: ClassVar[Mapping[str, tuple[bool, str]]] = {}

    huggingface: ClassVar[Mapping[str, str]] = {
        "embedding": "model.embed_tokens",
        "attention_norm": "model.layers.{}.input_layernorm",
        "attention.query": "model.layers.{}.self_attn.q_proj",
        "attention.key": "model.layers.{}.self_attn.k_proj",
        "attention.value": "model.layers.{}.self_attn.v_proj",
        "attention.output": "model.layers.{}.self_attn.o_proj",
        "attention.query_norm": "model.layers.{}.self_attn.q_norm",
        "attention.key_norm": "model.layers.{}.self_attn.k_norm",
        "mlp_norm": "model.layers.{}.post_attention_layernorm",
        "mlp.expand": "model.layers.{}.mlp.up_proj",
        "mlp.gate": "model.layers.{}.mlp.gate_proj",
        "mlp.shrink": "model.layers.{}.mlp.down_proj",
        "final_norm": "model.norm",
        "head": "lm_head",
    }
    huggingface_turned: ClassVar[bool] = False
    gguf: ClassVar[Mapping[str, str]] = {
        "embedding": "token_embd",
        "positions": "position_embd",
        "attention_norm": "blk.{}.attn_norm",
        "attention.query": "blk.{}.attn_q",
        "attention.key": "blk.{}.attn_k",
        "attention.value": "blk.{}.attn_v",
        "attention.output": "blk.{}.attn_output",
        "attention.query_norm": "blk.{}.attn_q_norm",
        "attention.key_norm": "blk.{}.attn_k_norm",
        "post_attention_norm": "blk.{}.post_attention_norm",
        "mlp_norm": "blk.{}.ffn_norm",
        "mlp.expand": "blk.{}.ffn_up",
        "mlp.gate": "blk.{}.ffn_gate",
        "mlp.shrink": "blk.{}.ffn_down",
        "post_mlp_norm": "blk.{}.post_ffw_norm",
        "final_norm": "output_norm",
        "head": "output",
    }
    gguf_interleaved: ClassVar[bool] = False
    gguf_square: ClassVar[bool] = False
    gguf_untied: ClassVar[bool] = False
    supported: ClassVar[Mapping[str, tuple[Any, ...]]] = {"hidden_act": ("silu", "swish")}

    @classmethod
    def stds(cls, model: "ModelConfig") -> Stds:
        """Every block starts as the identity: what writes into the residual stream is zero."""
        return Stds(0.02 if model.tie_embeddings else 1.0, model.d_model**-0.5, 0.0, 0.001)

    @classmethod
    def d_ff(cls, d_model: int) -> int:
        """The default width inside an MLP; a gate is a third matrix, so 8/3 cost as much as 4 without one."""
        return max(32, round(8 / 3 * d_model / 32) * 32) if cls.gated else 4 * d_model

    @classmethod
    def default(cls, hyperparameter: str) -> bool:
        """Of `bias` and `tie_embeddings`."""
        return cls.fixed.get(hyperparameter, (False, ""))[0]

    @classmethod
    def check(cls, model: "ModelConfig") -> None:
        """Raise ConfigError for hyperparameters that this family cannot have."""
        for key, (value, reason) in cls.fixed.items():
            if getattr(model, key) != value:
                raise ConfigError(
                    f"model.{key} = {str(not value).lower()} is not possible in the {cls.name} family: {reason}. "
                    "Try model.architecture = llama."
                )
        if not cls.grouped and model.n_kv_heads != model.n_heads:
            raise ConfigError(
                f"The {cls.name} family has no grouped-query attention: got model.n_heads = {model.n_heads} "
                f"and model.n_kv_heads = {model.n_kv_heads}. Make them equal, or try model.architecture = llama."
            )
        if cls.square and model.attention_width != model.d_model:
            raise ConfigError(
                f"In the {cls.name} family, model.n_heads times model.head_dim must equal model.d_model: got "
                f"{model.n_heads} times {model.head_dim}, and {model.d_model}. Leave model.head_dim out, or try "
                "model.architecture = llama."
            )
        if cls.positions == "rotary" and model.head_dim % 2:
            raise ConfigError(
                f"Rotary positions rotate channels in pairs, so model.head_dim (default: d_model / n_heads) "
                f"must be even: got {model.head_dim}. Try model.head_dim = {model.head_dim + 1}."
            )

    @classmethod
    def to_huggingface(cls, model: "ModelConfig") -> dict[str, Any]:
        """The keys of a config.json that give the model's shape, wherever transformers has another default."""
        return {
            "max_position_embeddings": model.context,
            "hidden_size": model.d_model,
            "intermediate_size": model.d_ff,
            "num_hidden_layers": model.n_layers,
            "num_attention_heads": model.n_heads,
            "num_key_value_heads": model.n_kv_heads,
            "head_dim": model.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": model.norm_epsilon,
            "attention_dropout": 0.0,
            "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_base},
            "rope_theta": model.rope_base,  # for transformers before version 5
        }

    @classmethod
    def from_huggingface(cls, theirs: TheirConfig) -> dict[str, Any]:
        """The [model] hyperparameters that a config.json stands for, without architecture and vocab_size."""
        width, heads = theirs.count("hidden_size"), theirs.count("num_attention_heads")
        return {
            "n_layers": theirs.count("num_hidden_layers"),
            "n_heads": heads,
            "n_kv_heads": theirs.count("num_key_value_heads", heads),
            "head_dim": theirs.count("head_dim", width // heads),
            "d_model": width,
            "d_ff": theirs.count("intermediate_size"),
            "context": theirs.count("max_position_embeddings"),
            "bias": cls.default("bias"),
            "tie_embeddings": theirs.flag("tie_word_embeddings"),
            "norm_epsilon": theirs.number("rms_norm_eps", 1e-6),
            "rope_base": theirs.rope_base(),
        }

    @classmethod
    def to_gguf(cls, model: "ModelConfig") -> dict[str, Any]:
        """The keys of a GGUF file that give norms and positions; each is below the name of the family."""
        return {
            "attention.layer_norm_rms_epsilon": model.norm_epsilon,
            "attention.key_length": model.head_dim,
            "attention.value_length": model.head_dim,
            "rope.dimension_count": model.head_dim,
            "rope.freq_base": model.rope_base,
        }
