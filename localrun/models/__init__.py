"""Does no I/O: Header and config.json → ModelSpec."""
