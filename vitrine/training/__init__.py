"""From a request to a trained run."""
