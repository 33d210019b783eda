"""Knows no socket: ``localrun launch``, the settings of editors and agents, and their start."""
