"""Knows no backend: how well a model predicts a text, and how near it stays to another.

``windows.cut`` makes windows of a text's tokens, ``perplexity.perplexity`` and
``divergence.compare`` run a model over them, ``logits_file`` keeps what a reference predicted.
"""
