"""Knows no engine: OpenAI's Responses API, from its wire to our words and back."""
