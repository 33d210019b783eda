"""Knows no engine: the API of llama.cpp's server, from its wire to our words and back."""
