"""Knows no file that is written: which type every tensor gets, and by what it was decided."""
