"""Text to windows of token ids: files, tokenizer, token files, batches. Never imports torch."""
