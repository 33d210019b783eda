"""Knows no sampling: what a text must be, and which tokens may come next for that."""
