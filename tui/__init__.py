"""Talks to a chat model, never to a runner: the full-screen chat."""

if __name__ != "localrun.tui":
    raise ImportError("import localrun.tui, not tui")
