"""Knows no engine: Ollama's API, from its wire to our words and back."""
