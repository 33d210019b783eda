"""Knows no tensors: one ASGI app, one adapter per API dialect."""
