"""What `--help` of every command shows at 80 columns, and that its example is one; completion; output in a file."""

import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer

ROOT = Path(__file__).parent.parent
COMMANDS = [
    "anyprec",
    "anyprec quantize",
    "anyprec inspect",
    "anyprec evaluate",
    "anyprec generate",
    "anyprec export",
    "ginex",
    "ginex train",
    "ginex infer",
    "ginex bench",
    "ginex plan",
    "ginex ingest",
    "ginex info",
    "ginex generate",
    "ginex generate rmat",
    "a3",
    "a3 cost",
    "a3 simulate",
    "a3 sweep",
    "a3 reproduce",
    "a3 evaluate",
]


def root_of(name: str) -> click.Command:
    return typer.main.get_command(importlib.import_module(f"{name}_jax.cli.app").app)


def found(line: str) -> tuple[click.Command, list[str]]:
    """The command that a line calls, and the arguments that are left for it."""
    name, *words = shlex.split(line)
    command = root_of(name)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]  # pyright: ignore[reportAttributeAccessIssue]
    return command, words


def shown(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    name, *words = line.split()
    assert importlib.import_module(f"{name}_jax.cli.app").main([*words, "--help"]) == 0
    return capsys.readouterr().out


def example_of(command: click.Command) -> str:
    assert command.epilog is not None, "there is no example"
    start, _, example = command.epilog.partition(": ")
    assert start == "Example"
    return example


def test_the_list_is_complete() -> None:
    def below(path: str, command: click.Command) -> list[str]:
        parts = getattr(command, "commands", {}).items()
        return [path, *(line for name, part in parts for line in below(f"{path} {name}", part))]

    assert sorted(COMMANDS) == sorted(
        line for name in ("anyprec", "ginex", "a3") for line in below(name, root_of(name))
    )


@pytest.mark.parametrize("line", COMMANDS)
def test_help_fits_80_columns_and_a_log_file(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(line, monkeypatch, capsys)
    assert max(map(len, text.splitlines())) <= 80
    assert not [c for c in text if ord(c) < 32 and c != "\n"]
    assert f"Example: {line}" in " ".join(text.split())


@pytest.mark.parametrize("line", COMMANDS)
def test_every_option_says_what_it_is_and_nothing_is_lost(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Square brackets in a help text are markup: what is in them would vanish."""
    command, _ = found(line)
    text = shown(line, monkeypatch, capsys)
    words = " ".join(text.replace("│", " ").split())
    for parameter in command.params:
        help_text = getattr(parameter, "help", None)
        assert help_text, f"{parameter.name} has no help"
        assert "[" not in help_text
        assert all(word in words for word in help_text.split()), f"{parameter.name}: {help_text}"
    assert command.help and "[" not in command.help


@pytest.mark.parametrize("line", COMMANDS)
def test_the_example_is_taken(line: str) -> None:
    example = example_of(found(line)[0])
    assert example.startswith(line)
    command, arguments = found(example)
    assert command.make_context(example, arguments).params  # or it raises: no such option, a value of the wrong type


def test_an_example_that_is_not_taken_is_seen() -> None:
    command, arguments = found("anyprec evaluate artefact --text a.txt --precison 3")
    with pytest.raises(Exception, match="precison"):
        command.make_context("", arguments)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("anyprec qu", {"quantize"}),
        ("ginex in", {"infer", "ingest", "info"}),
        ("a3 cost --quer", {"--queries-per-key"}),
    ],
)
def test_the_shell_completes(words: str, wanted: set[str]) -> None:
    name = words.split()[0]
    environment = os.environ | {
        f"_{name.upper()}_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    program = f"import sys; sys.argv[0] = {name!r}; import bandwise_commands; bandwise_commands.{name}()"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == wanted


@pytest.mark.parametrize(
    "line",
    [
        "a3 cost --n 320 --M 160 --C 65.6 --K 15.7",
        "a3 reproduce",
        "ginex generate rmat graph --scale 6 --edge-factor 4 --feature-dim 8 --classes 3",
        "ginex plan graph --cache 1KiB --fanouts 2,2 --batch-size 8 --disk-rate 1000",
        "ginex train graph --fanouts 2,2 --batch-size 8 --epochs 1 --hidden 8 --out run",
        "anyprec quantize tiny artefact --uniform",
        "anyprec evaluate artefact --text text.txt --sequence-length 32",
    ],
)
def test_output_in_a_file_has_no_control_characters(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    name, *words = shlex.split(line)
    assert importlib.import_module(f"{name}_jax.cli.app").main(words) == 0
    text = "".join(capfd.readouterr())
    assert text.strip()
    assert not [c for c in text if ord(c) < 32 and c != "\n"], text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one line after the other leaves what the next one needs."""
    from tests.anyprec_jax.tiny import TEXT, save_tiny_model

    folder = tmp_path_factory.mktemp("help")
    save_tiny_model(folder / "tiny")
    (folder / "text.txt").write_text(40 * TEXT, encoding="utf-8")
    return folder
