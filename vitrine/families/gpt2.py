"""gpt2: LayerNorm, learned positions, GELU, biases everywhere. Source: Radford et al. 2019, and GPT-2's code."""

import math
from typing import TYPE_CHECKING, Any, ClassVar

from vitrine.families.family import Family, Stds, TheirConfig

if TYPE_CHECKING:
    from vitrine.config import ModelConfig


class Gpt2(Family):
    """Every kind of parameter that there is. In other tools, query, key and value are one matrix."""

    name = "gpt2"
    transformers_class = "GPT2LMHeadModel"
    norm = "LayerNorm"
    positions = "learned"
    gated = False
    grouped = False
    square = True
    fixed: ClassVar = {
        "bias": (True, "all of its layers have biases"),
        "tie_embeddings": (True, "its output head is its embedding"),
    }

    huggingface: ClassVar = {
        "embedding": "transformer.wte",
        "positions": "transformer.wpe",
        "attention_norm": "transformer.h.{}.ln_1",
        "attention.query": "transformer.h.{}.attn.c_attn",
        "attention.key": "transformer.h.{}.attn.c_attn",
        "attention.value": "transformer.h.{}.attn.c_attn",
        "attention.output": "transformer.h.{}.attn.c_proj",
        "mlp_norm": "transformer.h.{}.ln_2",
        "mlp.expand": "transformer.h.{}.mlp.c_fc",
        "mlp.shrink": "transformer.h.{}.mlp.c_proj",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    }
    huggingface_turned = True
    gguf: ClassVar = {
        **Family.gguf,
        **dict.fromkeys(("attention.query", "attention.key", "attention.value"), "blk.{}.attn_qkv"),
    }
    supported: ClassVar = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    }

    @classmethod
    def stds(cls, model: "ModelConfig") -> Stds:
        """GPT-2's own: smaller for what writes into the residual stream, the more layers there are."""
        return Stds(0.02, 0.02, 0.02 / math.sqrt(2 * model.n_layers), 0.02)

    @classmethod
    def to_huggingface(cls, model: "ModelConfig") -> dict[str, Any]:
        """By GPT-2's own keys."""
        return {
            "n_positions": model.context,
            "n_ctx": model.context,  # llama.cpp reads this one
            "n_embd": model.d_model,
            "n_layer": model.n_layers,
            "n_head": model.n_heads,
            "n_inner": model.d_ff,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": model.norm_epsilon,
            "embd_pdrop": model.dropout,
            "resid_pdrop": model.dropout,
            "attn_pdrop": 0.0,
        }

    @classmethod
    def from_huggingface(cls, theirs: TheirConfig) -> dict[str, Any]:
        """From GPT-2's own keys."""
        width, heads = theirs.count("n_embd"), theirs.count("n_head")
        return {
            "n_layers": theirs.count("n_layer"),
            "n_heads": heads,
            "n_kv_heads": heads,
            "d_model": width,
            "d_ff": theirs.count("n_inner", 4 * width),
            "context": theirs.count("n_positions"),
            "bias": True,
            "tie_embeddings": True,
            "norm_epsilon": theirs.number("layer_norm_epsilon", 1e-5),
        }

    @classmethod
    def to_gguf(cls, model: "ModelConfig") -> dict[str, Any]:
        """Without rotary positions."""
        return {"attention.layer_norm_epsilon": model.norm_epsilon}
