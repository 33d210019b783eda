"""Knows no bytes: what the tensors and the configuration of a family become in a GGUF file."""
