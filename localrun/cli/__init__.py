"""The composition root: Typer commands, and the entry of the engine's child process."""


def main() -> None:
    """Entry of the ``localrun`` console script."""
    from localrun.cli.app import run_app

    run_app()
