"""Installations into empty environments, as users make them: `make check-package`. Needs the package index, and minutes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_packaging import FEATURES, ROOT

pytestmark = pytest.mark.installs
VERSIONS = ("3.11", "3.12", "3.13")
COST = "a3 cost --n 320 --M 160 --C 65.6 --K 15.7"
PRODUCT = """
import jax, jax.numpy as jnp, numpy as np
from anyprec_jax import QuantizeConfig, dequantize, matmul, quantize
from anyprec_jax.ops import cpu
weights = jax.random.normal(jax.random.key(0), (64, 128))
array = quantize(weights, jnp.ones_like(weights), QuantizeConfig(seed_precision=3, parent_precision=4))
x = jax.random.normal(jax.random.key(1), (2, 128))
wanted = np.asarray(x, np.float64) @ np.asarray(dequantize(array, precision=4), np.float64).T
error = np.linalg.norm(np.asarray(matmul(x, array, precision=4), np.float64) - wanted) / np.linalg.norm(wanted)
assert error < 5e-4, error  # what `ops.cpu.matmul` says of its default arithmetic
print(cpu.why_unavailable())
"""


def pythons() -> dict[str, str]:
    """Those on the path that run, by version."""
    found = {}
    for version in VERSIONS:
        program = shutil.which(f"python{version}")
        if program and subprocess.run([program, "-c", ""], capture_output=True).returncode == 0:
            found[version] = program
    return found


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)  # pyright: ignore
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment_with(folder: Path, python: str, requirement: str) -> Path:
    """The `bin` of a new environment with it."""
    run(python, "-m", "venv", folder)
    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", requirement)
    return folder / "bin"


def built(folder: Path, **variables: str) -> Path:
    """The wheel that pip makes of the repository, with other variables of the environment."""
    python = next(iter(pythons().values()))
    run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, env=os.environ | variables)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def plain_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the compiler fails."""
    return built(tmp_path_factory.mktemp("plain"), CXX="/bin/false")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_wheel_does_what_it_should(version: str, wheel: Path, tmp_path: Path) -> None:
    if version not in pythons():
        pytest.skip(f"python{version} is not on the path")
    binaries = environment_with(tmp_path / "environment", pythons()[version], str(wheel))
    assert "cycles" in run(binaries / COST.split()[0], *COST.split()[1:], cwd=tmp_path)
    assert run(binaries / "python", "-c", PRODUCT, cwd=tmp_path).strip() == "None"


def test_without_a_compiler_the_product_is_xlas(plain_wheel: Path, tmp_path: Path) -> None:
    assert plain_wheel.name.endswith("py3-none-any.whl")
    binaries = environment_with(tmp_path / "environment", next(iter(pythons().values())), str(plain_wheel))
    reason = run(binaries / "python", "-c", PRODUCT, cwd=tmp_path).strip()
    assert "compiler" in reason and len(reason.splitlines()) == 1


@pytest.mark.parametrize("extra", FEATURES)
def test_an_extra_alone_is_enough(extra: str, wheel: Path, tmp_path: Path) -> None:
    binaries = environment_with(tmp_path / "environment", next(iter(pythons().values())), f"{wheel}[{extra}]")
    program, left = FEATURES[extra]
    run(binaries / "python", "-c", "import sys\n" + program, cwd=tmp_path)
    assert any((tmp_path / left).iterdir())
