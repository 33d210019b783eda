"""Knows no backend: what runs on this machine taught, kept for the next plan."""
