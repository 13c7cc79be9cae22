"""The pages of API reference name all that the packages give out, and every one of these says what it is."""

import importlib
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("anyprec_jax", "ginex_jax", "a3_jax")


def hook() -> ModuleType:
    """`docs/api_pages.py`, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("api_pages", ROOT / "docs" / "api_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("package", PACKAGES)
def test_a_page_has_every_public_name(package: str) -> None:
    module = importlib.import_module(package)
    public = {
        name for name, value in vars(module).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    lines = [line.removeprefix("::: ") for line in hook().page(package).splitlines() if line.startswith("::: ")]
    assert {line.rsplit(".", 1)[1] for line in lines} == public
    for line in lines:
        where, name = line.rsplit(".", 1)
        assert getattr(importlib.import_module(where), name) is getattr(module, name)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_function_and_class_is_described(package: str) -> None:
    module = importlib.import_module(package)
    for name, value in vars(module).items():
        if inspect.isfunction(value) or inspect.isclass(value):
            text = value.__doc__ or ""
            assert text and not text.startswith(f"{name}("), f"{package}.{name} has no docstring"  # a dataclass's own


def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in menu
