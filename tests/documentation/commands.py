"""Whether a command is one that there is: its target, its subcommand and its flags, without running it."""

import importlib
import re
import shlex
from typing import Any

from tests.documentation.pages import ROOT

PROGRAMS = {"anyprec": "anyprec_jax", "ginex": "ginex_jax", "a3": "a3_jax"}


def complaint(command: str) -> str | None:
    """What is wrong with a command of the three programs, of make or of pip, or None; others are not known here."""
    program, *words = shlex.split(command)
    if program in PROGRAMS:
        return _of_a_program(program, words)
    if program == "make":
        return _of_make(words)
    if program == "pip":
        return _of_pip(words)
    return f"nothing is known of {program}: only anyprec, ginex, a3, make and pip can be checked without being run"


def _of_a_program(program: str, words: list[str]) -> str | None:
    import typer.main

    command: Any = typer.main.get_command(importlib.import_module(f"{PROGRAMS[program]}.cli.app").app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    if hasattr(command, "commands"):
        return f"{program} has no command {' '.join(words[:1])!r}"
    flags = {flag for parameter in command.params for flag in parameter.opts}
    unknown = {word.partition("=")[0] for word in words if word.startswith("--")} - flags
    return f"there is no {', '.join(sorted(unknown))}" if unknown else None


def _of_make(words: list[str]) -> str | None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    names = {word for word in words if "=" not in word}
    variables = {word.partition("=")[0] for word in words if "=" in word}
    unknown = sorted(names - targets) + sorted(name for name in variables if f"$({name}" not in makefile)
    return f"the Makefile has no {', '.join(unknown)}" if unknown or not names else None


def _of_pip(words: list[str]) -> str | None:
    """`pip install .`, with extras."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = re.fullmatch(r"install (?:-e )?\.(?:\[([a-z,]+)\])?", " ".join(words))
    if installed is None:
        return "only `pip install .`, with extras or without, can be checked"
    unknown = {extra for extra in (installed[1] or "").split(",") if extra} - set(project["optional-dependencies"])
    return f"there is no extra {', '.join(sorted(unknown))}" if unknown else None
