"""Knows no backend: what runs on this machine taught, kept for the next plan.

Nothing here leaves the machine, and nothing of a text is kept: ratios of times, and how often each
expert was picked. Each model has two small files in one folder; whoever removes them loses no more
than what they say.
"""
