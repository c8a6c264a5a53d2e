"""The run folder: its records, and how they are written and read. Needs no torch."""
