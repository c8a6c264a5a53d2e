"""The formats of other tools: Hugging Face and GGUF."""
