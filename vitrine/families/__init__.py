"""Families of models, each in one file: what sets them apart, and how other tools spell them. Without torch."""
