"""Knows no library: what streamed experts and rows need, whatever computes with them."""
