"""olmo2: norms after attention and MLP, and queries and keys normalised over all heads.

Source: Team OLMo 2024, arXiv:2501.00656.
"""

from typing import TYPE_CHECKING, Any, ClassVar

from vitrine.families.family import Family, Stds, TheirConfig

if TYPE_CHECKING:
    from vitrine.config import ModelConfig


class Olmo2(Family):
    """llama without biases, its norms moved to the end of each branch."""

    name = "olmo2"
    transformers_class = "Olmo2ForCausalLM"
    norm_after = True
    query_key_norm = "heads"
    fixed: ClassVar = {"bias": (False, "its layers have no biases")}
    huggingface: ClassVar = {
        **Family.huggingface,
        "post_attention_norm": "model.layers.{}.post_attention_layernorm",
        "post_mlp_norm": "model.layers.{}.post_feedforward_layernorm",
    }
    gguf_square = True
    gguf_untied = True
    supported: ClassVar = {**Family.supported, "attention_bias": (False,)}

    @classmethod
    def stds(cls, model: "ModelConfig") -> Stds:
        """What writes is not zero: the norm after it would blow up its first small numbers."""
        return Stds(0.02 if model.tie_embeddings else 1.0, model.d_model**-0.5, model.d_model**-0.5, 0.001)

    @classmethod
    def from_huggingface(cls, theirs: TheirConfig) -> dict[str, Any]:
        """transformers has another default for the norm."""
        return super().from_huggingface(theirs) | {"norm_epsilon": theirs.number("rms_norm_eps", 1e-5)}
