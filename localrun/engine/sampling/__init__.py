"""Knows no runner and no text: from a row of logits to the next token."""
