"""Knows no tensors: resolve, pull, verify, list, remove, import. Alone in writing model files."""
