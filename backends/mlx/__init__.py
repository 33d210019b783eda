"""Knows no HTTP and no path but the ones it is handed: the runner on mlx and mlx-lm."""
