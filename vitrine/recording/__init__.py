"""What is recorded while a model trains. It looks between the phases of a step, and changes no bit."""
