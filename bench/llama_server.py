"""Knows one recipe: llama-server from the source that the installed llama-cpp-python was built of.

    python bench/llama_server.py [--cmake-args "-DGGML_OPENMP=OFF"]

Needs cmake and a C++ compiler; takes some 15 minutes on 2 cores, once. Prints where it lies.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

from llama_cpp_source import BUILD, VERSION, fetch

# The Makefile's: what the installed package was built with. It adds no other, and like here cmake
# chooses the kernels of this machine (GGML_NATIVE).
CMAKE_ARGS = "-DGGML_OPENMP=OFF"
# What the server does not need to answer: pages, TLS, other programs.
LEFT_OUT = (
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
)
FOLDER = BUILD / f"llama-server-{VERSION}"


def configure_command(source: Path, folder: Path, cmake_args: str) -> list[str]:
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    command = ["cmake", "-S", str(source), "-B", str(folder), *generator]
    shared = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON"]
    return [*command, *shared, *LEFT_OUT, *shlex.split(cmake_args)]


def build(cmake_args: str = CMAKE_ARGS) -> Path:
    """The program, built where it is not there."""
    program = FOLDER / "bin" / "llama-server"
    if program.is_file():
        return program
    installed = version("llama-cpp-python")
    if installed != VERSION:
        raise SystemExit(
            f"llama-cpp-python {installed} is installed and bench/llama_cpp_source.py names "
            f"{VERSION}: install that one, or name the other with its archive's SHA-256"
        )
    if shutil.which("cmake") is None:
        raise SystemExit("llama-server is built with cmake, which is not on PATH: install it")
    source = fetch()
    subprocess.run(configure_command(source, FOLDER, cmake_args), check=True)
    jobs = str(os.cpu_count() or 1)
    make = ["cmake", "--build", str(FOLDER), "--target", "llama-server", "--parallel", jobs]
    subprocess.run(make, check=True)
    return program


def version_line(program: Path) -> str:
    """What the program says of itself, on one line."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return ", ".join((said.stdout + said.stderr).split("\n")).strip(", ")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cmake-args", default=CMAKE_ARGS)
    program = build(parser.parse_args().cmake_args)
    print(f"{program}: {version_line(program)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
