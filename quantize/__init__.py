"""Knows no server and no engine: from the tensors of one file format to those of another."""

if __name__ != "localrun.quantize":
    raise ImportError("import localrun.quantize, not quantize")
