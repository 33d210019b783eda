"""Asks the machine, never a model: what is here (probe)."""
