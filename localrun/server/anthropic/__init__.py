"""Knows no engine: Anthropic's messages API, from its wire to our words and back."""
