"""PyG with its compiled samplers, in an environment of its own: the peer of the graph benchmarks.

    python -m benchmarks.pyg_build [--peers .cache/peers] [--jobs 2]

Makes the virtual environment PEERS/pyg, installs torch and PyG there (pyg-requirements.txt), and builds torch-scatter and torch-sparse
from their source distributions (pyg-source-requirements.txt pins versions and hashes; build isolation would hide torch from them). Run
again, it does nothing unless a pin or the Python changed. torch takes 1 GB there; the build takes
some ten minutes on two idle cores, and 1.5 GB of memory a compiler.

Nothing of it can be imported by the project: its torch and NumPy are its own. A benchmark runs a script with the interpreter that
`built_python` returns, as benchmarks/pyg_peer.py does: the script, which may import torch, torch_geometric and torch_sparse and nothing
of this repository, reads arrays from .npy files and answers on a pipe, so that both sides take turns in one run.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from benchmarks.llamacpp_build import PEERS, PeerError, first_error

_FOLDER = Path(__file__).parent
REQUIREMENTS = _FOLDER / "pyg-requirements.txt"
SOURCES = _FOLDER / "pyg-source-requirements.txt"
_MODULES = ("torch", "torch_geometric", "torch_scatter", "torch_sparse")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=PEERS, help="where everything goes")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    arguments = parser.parse_args()
    try:
        print(f"PyG: interpreter {build(arguments.peers, jobs=arguments.jobs)}")
    except PeerError as error:
        raise SystemExit(f"error: {error}") from None


def built_python(peers: Path = PEERS) -> Path:
    """The interpreter of a finished build.

    Raises:
      PeerError: there is none for these pins.
    """
    if not _stamp_path(peers).exists() or _stamp_path(peers).read_text(encoding="utf-8") != stamp():
        raise PeerError("PyG is not built: `make bench-peers`")
    return _python(peers)


def build(peers: Path = PEERS, *, jobs: int = 2) -> Path:
    """Makes the environment and what is not in it yet. Returns its interpreter."""
    try:
        return built_python(peers)
    except PeerError:
        pass
    environment = peers / "pyg"
    shutil.rmtree(environment, ignore_errors=True)
    print("PyG: making an environment ...", flush=True)
    venv.create(environment, with_pip=True)
    print("PyG: installing torch ...", flush=True)
    _pip(peers, "install", "--requirement", str(REQUIREMENTS))
    print(f"PyG: compiling torch-scatter and torch-sparse, {jobs} at a time ...", flush=True)
    header = precompiled_header(peers)
    _pip(peers, *source_options(jobs), compiler_options=f"-include {header}")
    shutil.rmtree(header.parent)
    _run([str(_python(peers)), "-c", f"import {', '.join(_MODULES)}"], peers / "pyg.log")
    _stamp_path(peers).write_text(stamp(), encoding="utf-8")
    return _python(peers)


def source_options(jobs: int) -> list[str]:
    """Of pip, that builds what SOURCES pins against the torch that is installed, with several compilers at a time."""
    options = ["--no-build-isolation", "--no-deps", "--require-hashes", "--no-binary", "torch_scatter,torch_sparse"]
    return ["install", *options, f"--config-settings=--global-option=build_ext -j{jobs}", "--requirement", str(SOURCES)]


def precompiled_header(peers: Path) -> Path:
    """torch's headers, read once: they are more than half the work of each of the 32 files to compile. 0.8 GB, until all is built."""
    header = peers.absolute() / "pyg" / "headers" / "all.h"
    header.parent.mkdir(exist_ok=True)
    header.write_text("#include <torch/torch.h>\n#include <torch/script.h>\n", encoding="utf-8")
    include = next((peers.absolute() / "pyg" / "lib").glob("python*/site-packages/torch/include"))
    folders = [include, include / "torch" / "csrc" / "api" / "include", sysconfig.get_path("include")]
    # Where these are not the options that torch's build takes, the compiler reads the headers itself.
    options = ["-DNDEBUG", "-g0", "-fwrapv", "-O3", "-fPIC", "-fopenmp", "-std=c++20"]
    macros = ["-DWITH_PYTHON", "-DAT_PARALLEL_OPENMP", "-DTORCH_API_INCLUDE_EXTENSION_H"]
    command = ["c++", *options, *macros, *(f"-I{folder}" for folder in folders), "-x", "c++-header", str(header)]
    _run([*command, "-o", f"{header}.gch"], peers / "pyg.log")
    return header


def stamp() -> str:
    """What a finished build depends on: the pins and the Python."""
    recipe = "".join(path.read_text(encoding="utf-8") for path in (REQUIREMENTS, SOURCES)) + sys.version
    return hashlib.sha256(recipe.encode()).hexdigest() + "\n"


def _stamp_path(peers: Path) -> Path:
    return peers / "pyg.stamp"


def _python(peers: Path) -> Path:
    return peers.absolute() / "pyg" / "bin" / "python"


def _pip(peers: Path, *arguments: str, compiler_options: str = "") -> None:
    options = ["--disable-pip-version-check", "--progress-bar", "off"]
    # Without debugging symbols, which cost time, and without GPUs.
    environment = ["env", f"CFLAGS=-g0 {compiler_options}", "FORCE_ONLY_CPU=1"]
    _run([*environment, str(_python(peers)), "-m", "pip", *arguments, *options], peers / "pyg.log")


def _run(command: list[str], log: Path) -> None:
    """Runs `command` into `log`."""
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        excerpt = first_error(log.read_text(encoding="utf-8", errors="replace"))
        raise PeerError(f"`{' '.join(command[:4])} ...` failed{excerpt}: the whole output is in {log}")


if __name__ == "__main__":
    main()
