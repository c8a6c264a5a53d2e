"""qwen2: llama with biases on queries, keys and values. Source: Yang et al. 2024, arXiv:2407.10671."""

from typing import TYPE_CHECKING, Any, ClassVar

from vitrine.families.family import Family

if TYPE_CHECKING:
    from vitrine.config import ModelConfig


class Qwen2(Family):
    """Qwen2.5's models are of this family, too."""

    name = "qwen2"
    transformers_class = "Qwen2ForCausalLM"
    transformers_tokenizer = "PreTrainedTokenizerFast"  # AutoTokenizer would put Qwen's own in its place
    biases = "qkv"
    fixed: ClassVar = {"bias": (True, "its queries, keys and values have biases")}
    gguf_square = True
    supported: ClassVar = {**Family.supported, "use_sliding_window": (False,)}

    @classmethod
    def to_huggingface(cls, model: "ModelConfig") -> dict[str, Any]:
        """Without sliding windows."""
        return super().to_huggingface(model) | {"use_sliding_window": False}
