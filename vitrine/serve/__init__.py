"""An OpenAI-compatible server over a checkpoint: `vitrine serve RUN`."""
