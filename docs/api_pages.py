"""A hook of mkdocs: one page of API reference for each package, of what its `__init__.py` gives out, in that order, by module."""

import ast
from pathlib import Path
from typing import Any

PACKAGES = ("anyprec_jax", "ginex_jax", "a3_jax")
_ROOT = Path(__file__).parents[1]


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Adds the pages to the site's files."""
    from mkdocs.structure.files import File

    for package in PACKAGES:
        files.append(File.generated(config, f"api/{package}.md", content=page(package)))
    return files


def page(package: str) -> str:
    """Markdown: the package's docstring, then every public name by the place where it is defined."""
    tree = ast.parse((_ROOT / package / "__init__.py").read_text(encoding="utf-8"))
    names = [
        f"{statement.module}.{alias.name}"
        for statement in ast.walk(tree)
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
        if alias.asname == alias.name
    ]
    blocks = [f"# {package}", ast.get_docstring(tree) or "", *(f"::: {name}" for name in names)]
    return "\n\n".join(blocks) + "\n"
