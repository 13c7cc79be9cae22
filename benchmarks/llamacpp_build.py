"""llama.cpp, built for this machine from a pinned source distribution: the peer of the CPU benchmarks.

    python -m benchmarks.llamacpp_build [--peers .cache/peers] [--jobs 2]

Fetches the source distribution of llama-cpp-python (llamacpp-requirements.txt pins version and hash), takes llama.cpp
out of it, patches it (llamacpp_patches.py says what and why), and builds its shared libraries into PEERS/build/bin.
Run again, it does nothing unless the recipe or the processor changed. About 80 MB to fetch, five minutes on two cores.
"""

import argparse
import hashlib
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from benchmarks.llamacpp_patches import PATCHES, patched

REQUIREMENTS = Path(__file__).parent / "llamacpp-requirements.txt"
PEERS = Path(__file__).parent.parent / ".cache" / "peers"
_NEEDED = ("CMakeLists.txt", "LICENSE", "cmake", "ggml", "include", "licenses", "src", "vendor")  # of llama.cpp
_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "ON",
    "GGML_NATIVE": "ON",
    "GGML_CCACHE": "OFF",
    **{f"LLAMA_BUILD_{part}": "OFF" for part in ("APP", "COMMON", "EXAMPLES", "SERVER", "TESTS", "TOOLS", "UI")},
}


class PeerError(Exception):
    """The peer cannot be fetched, built or loaded; one line says what to do."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=PEERS, help="where everything goes")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    arguments = parser.parse_args()
    try:
        print(f"llama.cpp: libraries in {build(arguments.peers, jobs=arguments.jobs)}")
    except PeerError as error:
        raise SystemExit(f"error: {error}") from None


def build(peers: Path = PEERS, *, jobs: int = 2) -> Path:
    """Fetches, unpacks, patches and builds what is not there yet. Returns the folder of the libraries."""
    libraries = peers / "build" / "bin"
    if stamp_path(peers).exists() and stamp_path(peers).read_text(encoding="utf-8") == stamp():
        return libraries
    cmake = find_cmake()
    source = unpack(download(peers), peers / "source")
    patch(source)
    shutil.rmtree(peers / "build", ignore_errors=True)
    log = peers / "build.log"
    options = [f"-D{name}={value}" for name, value in _OPTIONS.items()]
    print("llama.cpp: configuring ...", flush=True)
    run_logged([cmake, "-S", str(source), "-B", str(peers / "build"), *options], log)
    print(f"llama.cpp: compiling, {jobs} at a time ...", flush=True)
    run_logged([cmake, "--build", str(peers / "build"), "--target", "llama", "--parallel", str(jobs)], log)
    stamp_path(peers).write_text(stamp(), encoding="utf-8")
    return libraries


def find_cmake() -> str:
    """This environment's, or the system's."""
    for path in (str(Path(sys.executable).parent), None):
        if (found := shutil.which("cmake", path=path)) is not None:
            return found
    raise PeerError("cmake is needed to build llama.cpp, and none was found: `pip install cmake`")


def stamp_path(peers: Path) -> Path:
    return peers / "build.stamp"


def stamp() -> str:
    """What a finished build depends on: the pinned version, patches, options, and the processor it is native to."""
    recipe = f"{REQUIREMENTS.read_text(encoding='utf-8')} {PATCHES} {_OPTIONS} {platform.machine()} {_cpu_flags()}"
    return hashlib.sha256(recipe.encode()).hexdigest() + "\n"


def download(peers: Path) -> Path:
    """The source distribution, through pip, which checks its hash; at once where it is there already."""
    name, version, sha256 = pinned(REQUIREMENTS.read_text(encoding="utf-8"))
    archive = peers / f"{name.replace('-', '_')}-{version}.tar.gz"
    if archive.exists() and _sha256(archive) == sha256:
        return archive
    peers.mkdir(parents=True, exist_ok=True)
    print(f"llama.cpp: fetching {name} {version} ...", flush=True)
    options = ["--disable-pip-version-check", "--progress-bar", "off", "--no-deps", "--no-binary", name]
    command = [sys.executable, "-m", "pip", "download", *options, "--require-hashes", "--dest", str(peers)]
    run_logged([*command, "--requirement", str(REQUIREMENTS)], peers / "download.log")
    if not archive.exists():
        raise PeerError(f"pip left no {archive}: see {peers / 'download.log'}")
    return archive


def pinned(requirements: str) -> tuple[str, str, str]:
    """Name, version and SHA-256 of the one pinned requirement in `requirements`."""
    found = re.findall(r"^([A-Za-z0-9-]+)==([0-9.]+) --hash=sha256:([0-9a-f]{64})$", requirements, re.MULTILINE)
    if len(found) != 1:
        raise PeerError(f"one requirement NAME==VERSION --hash=sha256:... was expected, and {len(found)} were found")
    return found[0]


def unpack(archive: Path, destination: Path) -> Path:
    """llama.cpp's sources out of `archive`, whole or not at all. Returns `destination`."""
    print(f"llama.cpp: unpacking {archive.name} ...", flush=True)
    partial = destination.with_name(destination.name + ".partial")
    for folder in (partial, destination):
        shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(archive) as tar:
        for member, path in source_members(tar):
            target = partial / path
            target.parent.mkdir(parents=True, exist_ok=True)
            contents = tar.extractfile(member)
            assert contents is not None, "only regular files are listed"
            with contents, target.open("wb") as file:
                shutil.copyfileobj(contents, file)
    if not (partial / "CMakeLists.txt").exists():
        raise PeerError(f"{archive} holds no vendor/llama.cpp: another version has another layout")
    return partial.rename(destination)


def source_members(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
    """The regular files of llama.cpp that a build needs, with their paths inside it; links and odd paths are refused."""
    for member in tar:
        path = PurePosixPath(member.name)
        if path.parts[1:3] != ("vendor", "llama.cpp") or not {*path.parts[3:4]} & {*_NEEDED} or member.isdir():
            continue
        if not member.isreg() or path.is_absolute() or ".." in path.parts:
            raise PeerError(f"{tar.name} holds {member.name}, which is not a plain file inside it: nothing was built")
        yield member, PurePosixPath(*path.parts[3:])


def patch(source: Path) -> None:
    for name, replacements in PATCHES.items():
        path = source / name
        try:
            path.write_text(patched(path.read_text(encoding="utf-8"), replacements), encoding="utf-8")
        except (OSError, ValueError) as error:
            raise PeerError(
                f"llama.cpp's {name} cannot be patched ({error}): another version needs another patch "
                "(benchmarks/llamacpp_patches.py)"
            ) from error


def run_logged(command: list[str], log: Path) -> None:
    """Runs `command` into `log`, printing every tenth per cent that it reports."""
    shown = -1
    with log.open("w", encoding="utf-8") as file, _start(command) as process:
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            if (percent := re.match(r"\[ *(\d+)%\]", line)) and int(percent[1]) // 10 > shown:
                shown = int(percent[1]) // 10
                print(f"llama.cpp: {10 * shown} %", flush=True)
    if process.returncode != 0:
        excerpt = first_error(log.read_text(encoding="utf-8"))
        raise PeerError(f"`{' '.join(command[:3])} ...` failed{excerpt}: the whole output is in {log}")


def first_error(output: str) -> str:
    """The first line of `output` that speaks of an error, with what follows it, on one line; empty if there is none."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for index, line in enumerate(lines):
        if re.search(r"\berror\b", line, re.IGNORECASE):
            return f" ({' '.join(lines[index : index + 3])[:300]})"
    return ""


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cpu_flags() -> str:
    """The first processor's feature flags; empty where the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


if __name__ == "__main__":
    main()
