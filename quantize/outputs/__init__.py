"""Knows no source: the formats that are written, each as files, places and encoders."""
