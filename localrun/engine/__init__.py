"""Knows token ids; not text templates, not HTTP."""
