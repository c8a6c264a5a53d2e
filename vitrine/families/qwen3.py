"""qwen3: llama with normalised queries and keys, and no biases. Source: Yang et al. 2025, arXiv:2505.09388."""

from typing import TYPE_CHECKING, Any, ClassVar

from vitrine.families.family import Family, TheirConfig

if TYPE_CHECKING:
    from vitrine.config import ModelConfig


class Qwen3(Family):
    """The default."""

    name = "qwen3"
    transformers_class = "Qwen3ForCausalLM"
    query_key_norm = "head"
    fixed: ClassVar = {"bias": (False, "its MLPs have no biases")}
    supported: ClassVar = {**Family.supported, "use_sliding_window": (False,), "attention_bias": (False,)}

    @classmethod
    def to_huggingface(cls, model: "ModelConfig") -> dict[str, Any]:
        """Without biases and sliding windows."""
        return super().to_huggingface(model) | {"attention_bias": False, "use_sliding_window": False}

    @classmethod
    def from_huggingface(cls, theirs: TheirConfig) -> dict[str, Any]:
        """transformers' own width of a head is 128."""
        return super().from_huggingface(theirs) | {"head_dim": theirs.count("head_dim", 128)}
