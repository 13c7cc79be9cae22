"""The rules of the house, read off the source: which module may import what."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("anyprec_jax", "ginex_jax", "a3_jax")

# Imports point up this list, never down: a room may use those above it. A folder is one room.
ROOMS = {
    "anyprec_jax": (
        "config",
        "bitplanes",
        "compact_codebooks",
        "array",
        "layout",
        "affine",
        "row_threads",
        "compaction",
        "kmeans1d",
        "upscale",
        "nested_rows",
        "refit",
        "joint_codes",
        "quantization",
        "native",
        "ops",
        "chat",
        "tokenizer",
        "text_stream",
        "models",
        "sharding",
        "calibration",
        "sensitivity",
        "divergence",
        "layer_divergence",
        "allocation",
        "checkpoint",
        "processes",
        "quantization_folder",
        "model_quantization",
        "sampling",
        "decoding",
        "generation",
        "evaluate",
        "inspection",
        "cli",
    ),
    "ginex_jax": (
        "compilation",
        "random_numbers",
        "graph",
        "features",
        "batch",
        "sampling",
        "store",
        "ingest",
        "belady",
        "gather",
        "pipeline",
        "models",
        "checkpoint",
        "inference",
        "train",
        "cli",
    ),
    "a3_jax": (
        "compilation",
        "sorted_keys",
        "candidates",
        "post_scoring",
        "metrics",
        "attention",
        "conditioning",
        "merging",
        "growing_keys",
        "native",
        "blocks",
        "certificate",
        "baselines",
        "fixed_point",
        "cost",
        "workloads",
        "cli",
    ),
}
# Library -> the only rooms that may import it.
FENCES = {
    "orbax": {"checkpoint"},
    "tensorstore": {"checkpoint", "store", "ingest"},
    "pyarrow": {"ingest"},
    "zarr": set(),
    "safetensors": {"checkpoint", "workloads"},
    "gguf": {"checkpoint"},
    # A store counts the reads of several threads.
    "threading": {"engine", "pipeline", "gather", "features", "store"},
    # Rows of a matrix are independent, and the kernels that cluster them hold no lock of the interpreter's; a disk wants many
    # requests at once; two pieces of an external sort are sorted at the same time.
    "concurrent": {"engine", "pipeline", "gather", "row_threads", "store", "ingest"},
    "multiprocessing": {"engine", "pipeline", "gather"},
    "jax.experimental.pallas": {"ops"},
    "flax": {"models", "workloads"},
    "optax": {"train", "workloads"},
    "tensorboard": {"train"},
    "yaml": {"cli"},
    "typer": {"cli"},
    "rich": {"cli"},
    "argparse": {"cli"},
    # Where `ginex plan` draws what it found.
    "matplotlib": {"cli"},
    "torch": set(),
    "transformers": set(),
}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def room_of(package: str, path: Path) -> str:
    return path.relative_to(ROOT / package).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def broken_rules(package: str, path: Path, source: str) -> list[str]:
    """What one file does that the house forbids."""
    room, tree, broken = room_of(package, path), ast.parse(source), []
    for name in imports(tree):
        first, *rest = name.split(".")
        if first in PACKAGES and first != package:
            broken.append(f"imports {name} of another package")
        if first == package and room != "__init__" and rest:
            target = rest[0]
            if target not in ROOMS[package]:
                broken.append(f"imports {name}, which no room holds: import from the module, not from the package")
            elif ROOMS[package].index(target) > ROOMS[package].index(room):
                broken.append(f"imports {name}, which is further down the list")
        for library, rooms in FENCES.items():
            if (name == library or name.startswith(library + ".")) and room not in rooms:
                broken.append(f"imports {library}, which belongs to {sorted(rooms) or 'no package'}")
        if name == "__future__.annotations":
            broken.append("imports __future__.annotations, which blinds the run-time shape checks")
    if room != "cli" and re.search(r"\bos\.environ\b|\bgetenv\(", source):
        broken.append("reads the environment")
    return broken


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_a_room_in_the_list(package: str) -> None:
    rooms = {room_of(package, path) for path in sources(package)} - {"__init__"}
    assert rooms <= set(ROOMS[package])


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_keep_the_rules(package: str) -> None:
    broken = {
        str(path.relative_to(ROOT)): rules
        for path in sources(package)
        if (rules := broken_rules(package, path, path.read_text(encoding="utf-8")))
    }
    assert not broken


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import anyprec_jax.cli", "further down"),
        ("from anyprec_jax import cli", "further down"),
        ("from anyprec_jax import quantize", "no room holds"),
        ("import orbax.checkpoint as ocp", "imports orbax"),
        ("from jax.experimental import pallas as pl", "imports jax.experimental.pallas"),
        ("def f():\n  from concurrent.futures import Future", "imports concurrent"),
        ("from __future__ import annotations", "blinds"),
        ("import os\nx = os.environ['A']", "environment"),
        ("import torch", "imports torch"),
    ],
)
def test_a_broken_rule_is_seen(source: str, complaint: str) -> None:
    rules = broken_rules("anyprec_jax", ROOT / "anyprec_jax" / "array.py", source)
    assert any(complaint in rule for rule in rules)


def test_no_dumping_grounds() -> None:
    names = {path.stem for package in PACKAGES for path in sources(package)}
    assert not names & {"utils", "util", "common", "helpers", "misc", "_src"}


def test_modules_never_share_a_name_with_a_public_function() -> None:
    for package in PACKAGES:
        tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
        public = {name.rpartition(".")[2] for name in imports(tree)}
        modules = {path.stem for path in (ROOT / package).glob("*.py")}
        assert not public & modules
