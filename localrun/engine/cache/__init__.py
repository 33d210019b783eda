"""Knows no sampling: what is held of prompts to come, by the runner, the host and the disk."""
