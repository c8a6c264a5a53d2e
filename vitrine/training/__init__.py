"""Training: from a request to a trained run."""
