"""Knows no scheduler: guesses of what comes next, and whether they pay."""
