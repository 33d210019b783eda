"""Knows no kernel: what is said when the library that ggml comes with cannot be used."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from localrun.errors import BackendMissingError
from localrun.ggml import library


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """As if nothing had been looked up yet; what a test looked up is forgotten again."""

    def forget() -> None:
        for remembered in (library.function, library._libllama, library._library, library.build):
            remembered.cache_clear()

    forget()
    yield monkeypatch
    forget()


def test_an_absent_library_is_a_missing_backend_with_the_way_to_the_command(
    unloaded: pytest.MonkeyPatch,
) -> None:
    unloaded.setitem(sys.modules, "llama_cpp", None)

    with pytest.raises(BackendMissingError, match="llama-cpp-python does not load") as caught:
        library.build()

    assert "localrun doctor" in caught.value.hint


def test_importing_the_bridge_loads_neither_the_library_nor_numpy() -> None:
    code = (
        "import sys, localrun.ggml.matmul, localrun.ggml.quantize; "
        "print({'llama_cpp', 'numpy'} & set(sys.modules))"
    )

    printed = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout

    assert printed == "set()\n"
