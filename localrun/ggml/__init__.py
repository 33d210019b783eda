"""Knows no models: the bridge to the installed libggml. Loads it on first use, never on import."""
