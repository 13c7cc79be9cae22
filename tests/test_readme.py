"""The Python snippets of the README about graphs and attention run as they stand, one after the other, in an empty folder."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def snippets(package: str) -> list[str]:
    """Those that import the package, in order."""
    found = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return [snippet for snippet in found if f"from {package} import" in snippet]


def test_the_snippets_about_graphs_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = []
    for snippet in snippets("ginex_jax"):
        exec(compile(snippet, "README.md", "exec"), {"__name__": "readme"})
        printed.append(capsys.readouterr().out)
    sampled, loaded = printed
    assert re.match(r"\(\d+, 64\) \[\(\d+, 10\), \(500, 10\)\]", sampled)
    assert re.match(r"\d+% of the rows were in the cache MemorySplit", loaded)


def test_the_snippet_about_attention_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = snippets("a3_jax")
    exec(compile(snippet, "README.md", "exec"), {"__name__": "readme"})
    assert re.fullmatch(
        r"\d+ of 320 rows looked at, \d+ kept, error 0\.\d+\n\d+ \d+ \(64,\)\n", capsys.readouterr().out
    )


def test_flags_of_the_commands_exist() -> None:
    """Every `ginex` line names a command and flags that there are."""
    import typer.main

    from ginex_jax.cli.app import app

    lines = re.findall(r"^ginex (.*?)(?:\s{2,}#.*)?$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) > 8
    for line in lines:
        command, words = typer.main.get_command(app), line.split()
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]  # pyright: ignore[reportAttributeAccessIssue]
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= flags, line
