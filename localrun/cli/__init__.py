"""The composition root: Typer commands, and the entry of the engine's child process."""
