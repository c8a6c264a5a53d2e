"""Recording during training: observes between the phases of a step, and changes no bit of the training."""
