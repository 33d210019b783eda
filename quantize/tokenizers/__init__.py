"""Knows no tensor: vocabularies of releases, in the form that GGUF files hold them."""
