"""The training text: from files to the windows of a step."""
