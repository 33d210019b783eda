"""Knows no architecture: experts in slots of memory, the rest of them on disk."""
