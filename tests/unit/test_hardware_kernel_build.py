"""Which build of the kernels is installed, without loading it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from localrun.hardware import kernel_build as room
from localrun.hardware.kernel_build import kernel_build


def installed(monkeypatch: pytest.MonkeyPatch, record: str | None) -> str:
    found = SimpleNamespace(version="0.3.36", read_text=lambda name: record)
    monkeypatch.setattr(room, "distribution", lambda name: found)
    return kernel_build()


def test_two_builds_of_one_version_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    library = "llama_cpp/lib/libggml-cpu.so,sha256={},900\nllama_cpp/llama.py,sha256=x,1\n"

    one, other, again = (installed(monkeypatch, library.format(d)) for d in ("aa", "bb", "aa"))

    assert one == again
    assert one != other
    assert one.startswith("llama-cpp-python 0.3.36 ")


def test_a_build_without_a_record_is_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed(monkeypatch, None) == "llama-cpp-python 0.3.36 of unknown build"


def test_without_the_package_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(room, "distribution", absent)

    assert kernel_build() == ""


def test_the_library_is_not_loaded_for_it() -> None:
    code = (
        "import sys; from localrun.hardware.kernel_build import kernel_build; "
        "print(kernel_build(), 'llama_cpp' in sys.modules, 'numpy' in sys.modules)"
    )

    said = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)

    assert said.stdout.endswith(" False False\n")
