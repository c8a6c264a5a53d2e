"""From a prompt to text."""
