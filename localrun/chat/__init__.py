"""Knows no tensors and no HTTP server: messages, templates, reasoning, history."""
