"""Knows no model: an engine in a process of its own, and what crosses to it and back."""
