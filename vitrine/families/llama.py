"""llama: RMSNorm, rotary positions, SwiGLU. Source: Touvron et al. 2023, arXiv:2302.13971."""

from typing import TYPE_CHECKING, Any

from vitrine.families.family import Family, TheirConfig

if TYPE_CHECKING:
    from vitrine.config import ModelConfig


class Llama(Family):
    """What `Family` says; all of its linear layers may have biases."""

    name = "llama"
    transformers_class = "LlamaForCausalLM"
    gguf_interleaved = True

    @classmethod
    def to_huggingface(cls, model: "ModelConfig") -> dict[str, Any]:
        """And its biases."""
        return super().to_huggingface(model) | {"attention_bias": model.bias, "mlp_bias": model.bias}

    @classmethod
    def from_huggingface(cls, theirs: TheirConfig) -> dict[str, Any]:
        """And its biases: everywhere, or nowhere."""
        return super().from_huggingface(theirs) | {"bias": theirs.same_flag("attention_bias", "mlp_bias")}
