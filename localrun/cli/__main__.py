"""Knows nothing: ``python -m localrun.cli`` is ``localrun``."""

from localrun.cli import main

main()
