"""Knows no engine: OpenAI's API, from its wire to our words and back."""
