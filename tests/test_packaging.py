"""What is published: metadata, the files of sdist and wheel, and what can be imported where only some requirements are installed."""

import ast
import functools
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGES = ("anyprec_jax", "ginex_jax", "a3_jax", "bandwise_commands")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PEERS = {
    "torch",
    "torch_geometric",
    "torch_sparse",
}  # of benchmarks, in an environment of their own (`make bench-peers`)
OPTIONAL_MODULES = {"ginex_jax.train.tensorboard_log"}  # that an extra is needed for to be imported at all


def required(extras: Iterable[str] = ()) -> list[Requirement]:
    """What bandwise asks for by itself: its dependencies, and those of extras."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        for line in PROJECT["optional-dependencies"][extra]:
            requirement = Requirement(line)
            own = requirement.name == "bandwise"
            lines += [str(r) for r in required(requirement.extras)] if own else [line]
    return [Requirement(line) for line in lines]


@functools.cache
def installed_with(extras: tuple[str, ...] = ()) -> frozenset[str]:
    """The distributions that an installation brings: what is required, and what that requires."""
    found: set[tuple[str, str]] = set()

    def follow(requirement: Requirement) -> None:
        for extra in ("", *requirement.extras):
            if (key := (canonicalize_name(requirement.name), extra)) in found:
                continue
            found.add(key)
            for line in importlib.metadata.requires(requirement.name) or []:
                further = Requirement(line)
                if further.marker is None or further.marker.evaluate({"extra": extra}):
                    follow(further)

    for requirement in required(extras):
        follow(requirement)
    return frozenset(name for name, _ in found)


def imported(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """First parts of the names that a file imports, wherever it does."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def distributions_of(names: Iterable[str]) -> dict[str, set[str]]:
    """The distributions that have these modules; our own and Python's left out."""
    ours = {*PACKAGES, "benchmarks", "examples", "tests", "docs"} | sys.stdlib_module_names
    known = importlib.metadata.packages_distributions()
    return {name: set(map(canonicalize_name, known.get(name, ()))) for name in names if name not in ours}


def files_of(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def test_versions_of_python_are_those_named() -> None:
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert named == ["3.11", "3.12", "3.13"]
    wanted = SpecifierSet(PROJECT["requires-python"])
    assert all(f"{version}.0" in wanted for version in named) and "3.10.99" not in wanted


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_package_imports_is_asked_for_by_name(package: str) -> None:
    """Not only what another requirement happens to bring."""
    extras = [e for e in PROJECT["optional-dependencies"] if e in ("ingest", "plot", "tensorboard")]
    asked = {canonicalize_name(r.name) for r in required(extras)}
    names = {name for path in files_of(package) for name in imported(path)}
    missing = {name: found for name, found in distributions_of(names).items() if not found & asked}
    assert not missing


@pytest.mark.parametrize(
    ("folder", "extras"),
    [("examples", ("demo",)), ("benchmarks", ("bench",)), ("docs", ("docs",)), ("tests", ("test", "bench", "parity"))],
)
def test_what_a_folder_imports_at_once_comes_with_its_extra(folder: str, extras: tuple[str, ...]) -> None:
    names = {name for path in files_of(folder) for name in imported(path, top_level_only=True)}
    names -= PEERS | {path.stem for path in (ROOT / folder).glob("*.py")}  # hooks of mkdocs import each other so
    missing = {name: found for name, found in distributions_of(names).items() if not found & installed_with(extras)}
    assert not missing


def run_with(extras: tuple[str, ...], program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program that can import nothing but what an installation with these extras brings."""
    known = importlib.metadata.packages_distributions()
    allowed = installed_with(extras) | {"bandwise"}
    hidden = {name for name, found in known.items() if not allowed & set(map(canonicalize_name, found))}
    hidden -= {*PACKAGES, "tests", "examples"} | sys.stdlib_module_names
    hider = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
class Hider:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hider())
"""
    return subprocess.run([sys.executable, "-c", hider + program], cwd=folder, capture_output=True, text=True)


def modules() -> list[str]:
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for package in PACKAGES for p in files_of(package)]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def test_every_module_is_imported_without_extras(tmp_path: Path) -> None:
    names = sorted(set(modules()) - OPTIONAL_MODULES)
    assert len(names) > 200
    done = run_with((), f"import importlib\nfor name in {names!r}: importlib.import_module(name)", tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_is_hidden_is_not_found(tmp_path: Path) -> None:
    for hidden in ("pyarrow", "matplotlib", "tensorboard", "pytest"):
        assert f"No module named '{hidden}'" in run_with((), f"import {hidden}", tmp_path).stderr


HEAVY = {
    "anyprec_jax": {"orbax", "jax.experimental.pallas", "numba", "flax", "optax", "transformers", "torch"},
    "ginex_jax": {"orbax", "jax.experimental.pallas", "jraph", "pyarrow", "tensorboard", "matplotlib"},
    "a3_jax": {"orbax", "jax.experimental.pallas", "numba", "flax", "optax", "tensorstore", "matplotlib", "tokenizers"},
    "bandwise_commands": {"jax", "numpy", "typer", "rich"},
}


@pytest.mark.parametrize("package", PACKAGES)
def test_an_import_waits_for_nothing_that_it_does_not_need(package: str, tmp_path: Path) -> None:
    """Libraries that only some of its functions use."""
    done = run_with((), f"import {package}; print(*({HEAVY[package]!r} & set(sys.modules)))", tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def command(name: str, *lines: str) -> str:
    calls = "".join(f"status = main({line.split()!r})\nif status: sys.exit(status)\n" for line in lines)
    return f"from {name}_jax.cli.app import main\n{calls}"


RMAT = "generate rmat graph --scale 6 --edge-factor 4 --feature-dim 8 --classes 3"
TRAIN = "train graph --fanouts 2,2 --batch-size 8 --epochs 1 --hidden 8 --out run"
FEATURES = {  # of an extra: a program that needs it, and what it leaves behind
    "ingest": (command("ginex", RMAT + " --edge-list edges.parquet", "ingest again --edges edges.parquet"), "again"),
    "plot": (command("a3", "reproduce --plots plots"), "plots"),
    "tensorboard": (command("ginex", RMAT, TRAIN + " --tensorboard"), "run/tensorboard"),
}


@pytest.mark.parametrize("extra", FEATURES)
def test_an_extra_is_all_that_its_feature_needs(extra: str, tmp_path: Path) -> None:
    program, left = FEATURES[extra]
    done = run_with((extra,), program, tmp_path)
    assert done.returncode == 0, done.stderr
    assert any((tmp_path / left).iterdir())


@pytest.mark.parametrize("extra", FEATURES)
def test_without_its_extra_a_feature_says_so_in_a_line(extra: str, tmp_path: Path) -> None:
    done = run_with((), FEATURES[extra][0], tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: this needs ")
    assert done.stderr.rstrip().endswith(f"pip install 'bandwise[{extra}]'")


def test_the_demo_is_imported_with_its_extra(tmp_path: Path) -> None:
    program = "import examples.demo.__main__, matplotlib.figure, pyarrow; matplotlib.figure.Figure().savefig('a.svg')"
    assert (done := run_with(("demo",), program, tmp_path)).returncode == 0, done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that an installation without a compiler makes of it; no network is asked."""
    folder = tmp_path_factory.mktemp("built")
    hooks = (
        "import sys, scikit_build_core.build as b; b.build_sdist(sys.argv[1])",
        "import sys, scikit_build_core.build as b; b.build_wheel(sys.argv[1], {'wheel.cmake': 'false'})",
    )
    source = folder / "source"
    large = {".git", ".venv", ".cache", "build", "demo", "dist"}
    shutil.copytree(ROOT, source, ignore=lambda at, _: large if Path(at) == ROOT else {"__pycache__"})
    for stray in ("stray.py", "stray.bin", "demo/report.py", "ginex_jax/__pycache__/a.py311.nbi", "a3_jax/native/a.so"):
        (source / stray).parent.mkdir(parents=True, exist_ok=True)
        (source / stray).write_text("stray", encoding="utf-8")
    subprocess.run([sys.executable, "-c", hooks[0], str(folder)], cwd=source, check=True, capture_output=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    unpacked = next((folder / "unpacked").iterdir())
    subprocess.run([sys.executable, "-c", hooks[1], str(folder)], cwd=unpacked, check=True, capture_output=True)
    return folder


def listed(*options: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", *options], cwd=ROOT, check=True, capture_output=True, text=True)
    return {name for name in listed.stdout.split("\n") if name and (ROOT / name).exists()}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a repository: nothing says which files are its own")
def test_the_sdist_is_the_repository(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert held - {"PKG-INFO"} <= listed("--cached", "--others", "--exclude-standard"), "strays"
    assert {name for name in listed() - held if not name.startswith(".ci/")} == set()


def test_the_wheel_is_the_packages(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        held = {name for name in wheel.namelist() if not name.endswith("/")}
    own = {name for name in held if not name.partition("/")[0].endswith(".dist-info")}
    wanted = {str(path.relative_to(ROOT)) for package in PACKAGES for path in files_of(package)}
    assert own == wanted | {f"{package}/py.typed" for package in PACKAGES}
    assert {Path(name).name for name in held - own} == {"METADATA", "WHEEL", "RECORD", "LICENSE", "entry_points.txt"}


def test_what_the_wheel_says_of_itself(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        texts = {Path(name).name: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}
    assert texts["METADATA"].count("\nProvides-Extra: ") == len(PROJECT["optional-dependencies"])
    assert "\nRequires-Python: >=3.11\n" in texts["METADATA"]
    assert "\nLicense-Expression: Apache-2.0\n" in texts["METADATA"]
    assert re.findall(r"^(\w+) = ", texts["entry_points.txt"], re.MULTILINE) == list(PROJECT["scripts"])
    assert "\nTag: py3-none-any\n" in texts["WHEEL"]
