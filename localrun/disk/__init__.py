"""Knows no model: files read past the page cache, many reads under way at once."""
