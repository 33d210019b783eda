"""Knows no kernel: which build of the kernels is installed, said without loading it."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, distribution

DISTRIBUTION = "llama-cpp-python"


def kernel_build() -> str:
    """The package's version and a digest of its libraries; empty where there is none.

    One version built for another processor, or with OpenMP, has other speeds. The digests that the
    installer recorded of the libraries tell builds apart in a millisecond.
    """
    try:
        found = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        return ""
    lines = [line for line in (found.read_text("RECORD") or "").splitlines() if "ggml" in line]
    digest = hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]
    return f"{DISTRIBUTION} {found.version} {digest if lines else 'of unknown build'}"
