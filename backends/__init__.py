"""Knows no HTTP and no path but the ones it is handed: the runners' libraries, one room each."""

if __name__ != "localrun.backends":
    raise ImportError("import localrun.backends, not backends")
