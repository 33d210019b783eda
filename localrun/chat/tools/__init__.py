"""Knows no HTTP and no model's name: tool calls in what models of each family write.

``reading`` tells an answer's text, reasoning and calls apart, ``forcing`` makes a model call,
``prompting`` tells of tools where a template cannot. A family is recognised by its chat template's
source, and has a file of its own.
"""
