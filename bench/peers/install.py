"""Install the peers under build/peers, once: ``make bench-peers``. Two C++ builds take minutes on two cores.

- python: an environment with llama-cpp-python, built from its source distribution.
- llama.cpp: the server and benchmarks of the llama.cpp that is in the same source distribution.
- node: node-llama-cpp with its prebuilt library.

A peer that cannot be built is left out; why is printed, and kept for the record. What is there already is left alone.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.peers import FOLDER, NODE, PYTHON, SERVER

LLAMA_CPP_PYTHON, NODE_LLAMA_CPP = "0.3.36", "3.22.1"

#: With AMX, what gcc 12 makes of a native build crashes (a fault at ldtilecfg), so everything but AMX is named there.
WITHOUT_AMX = (
    "-DGGML_NATIVE=OFF", "-DGGML_AVX=ON", "-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON", "-DGGML_BMI2=ON",
    "-DGGML_AVX_VNNI=ON", "-DGGML_AVX512=ON", "-DGGML_AVX512_VBMI=ON", "-DGGML_AVX512_VNNI=ON",
    "-DGGML_AVX512_BF16=ON",
)  # fmt: skip
NATIVE = ("-DGGML_NATIVE=ON",)
TOOLS = ("llama-server", "llama-bench", "llama-batched-bench")


class MissingError(Exception):
    """Something that a peer needs is missing."""


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    peers: tuple[tuple[str, Path, Callable[[], None]], ...] = (
        ("llama-cpp-python", PYTHON, install_bindings),
        ("llama.cpp's server", SERVER, build_server),
        ("node-llama-cpp", NODE / "node_modules" / "node-llama-cpp", install_node),
    )
    for name, proof, install in peers:
        if proof.exists():
            print(f"{name}: there already")
            continue
        print(f"{name}: installing; what the tools say is in {log_of(name)}", flush=True)
        try:
            install()
        except (MissingError, OSError, subprocess.CalledProcessError, tarfile.TarError) as error:
            failed[name] = str(error).splitlines()[0]
            print(f"{name}: left out: {failed[name]}", flush=True)
    (FOLDER / "failed.json").write_text(json.dumps(failed, indent=1) + "\n")


def cmake_flags() -> list[str]:
    """For this machine's CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    amx = cpuinfo.exists() and "amx_int8" in cpuinfo.read_text()
    return list(WITHOUT_AMX if amx else NATIVE)


def install_bindings() -> None:
    need("c++", "a C++ compiler")
    # pip brings its own cmake where there is none
    folder = PYTHON.parents[1]
    part = folder.with_suffix(".part")
    run("llama-cpp-python", [sys.executable, "-m", "venv", "--clear", part])
    flags = [*cmake_flags(), "-DLLAVA_BUILD=OFF", "-DMTMD_BUILD=OFF"]
    run(
        "llama-cpp-python",
        [part / "bin" / "python", "-m", "pip", "install", "--no-binary", "llama-cpp-python", "numpy",
         f"llama-cpp-python=={LLAMA_CPP_PYTHON}"],
        {"CMAKE_ARGS": " ".join(flags), "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())},
    )  # fmt: skip
    part.rename(folder)


def build_server() -> None:
    need("c++", "a C++ compiler")
    need("cmake")
    source = FOLDER / "source"
    run(
        "llama.cpp's server",
        [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", source,
         f"llama-cpp-python=={LLAMA_CPP_PYTHON}"],
    )  # fmt: skip
    with tarfile.open(next(source.glob("*.tar.gz"))) as archive:
        archive.extractall(source, filter="data")
    llama_cpp = next(source.glob("*/vendor/llama.cpp"))
    folder = SERVER.parents[1]
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", *cmake_flags()]
    run("llama.cpp's server", ["cmake", "-S", llama_cpp, "-B", folder, *options])
    jobs = str(os.cpu_count())
    run("llama.cpp's server", ["cmake", "--build", folder, "--parallel", jobs, "--target", *TOOLS])


def install_node() -> None:
    need("npm")
    need("node")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise MissingError("its prebuilt library is installed for Linux on x86-64 alone")
    # without its optional packages, some 700 MB of libraries for GPUs
    packages = (f"node-llama-cpp@{NODE_LLAMA_CPP}", f"@node-llama-cpp/linux-x64@{NODE_LLAMA_CPP}")
    run(
        "node-llama-cpp",
        ["npm", "install", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", NODE,
         *packages],
    )  # fmt: skip


def need(program: str, called: str = "") -> None:
    if shutil.which(program) is None:
        raise MissingError(f"{called or program} is not installed")


def run(name: str, command: list[str | Path], environment: Mapping[str, str] | None = None) -> None:
    """One command, its words in the peer's log.

    Raises:
      MissingError: it failed; with the last line that it said.
    """
    with log_of(name).open("ab") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env=os.environ | dict(environment or {}))
    if done.returncode:
        lines = log_of(name).read_text(errors="replace").strip().splitlines() or ["nothing"]
        program = Path(command[0]).name
        raise MissingError(f"{program} ended with status {done.returncode} and said last: {lines[-1].strip()}")


def log_of(name: str) -> Path:
    return FOLDER / f"{''.join(c if c.isalnum() else '-' for c in name)}.log"


if __name__ == "__main__":
    main()
