"""The installed commands end quietly at Ctrl-C, also while their packages are imported."""

import importlib
import importlib.metadata
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from bandwise_commands import application
from bandwise_commands.application import run_application

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("command", ["anyprec", "ginex", "a3"])
def test_ctrl_c_during_imports(tmp_path, command):
    package = tmp_path / f"{command}_jax"
    package.mkdir()
    (package / "__init__.py").write_text("import os, time; os.write(1, b'.'); time.sleep(600)")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import bandwise_commands; bandwise_commands.{command}()"
    )
    # Without `site`, so that an editable install does not find the real package first.
    with subprocess.Popen(
        [sys.executable, "-S", "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate()
    assert (process.returncode, messages) == (130, b"interrupted\n")


@pytest.mark.parametrize("command", ["anyprec", "ginex", "a3"])
def test_a_command_runs(command):
    program = f"import bandwise_commands; bandwise_commands.{command}()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert command in done.stdout


def test_what_comes_before_the_imports_is_light():
    program = "import sys; before = set(sys.modules); import bandwise_commands; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "numpy" not in done.stdout and "jax" not in done.stdout


@pytest.mark.parametrize("package", ["anyprec_jax.cli.app", "ginex_jax.cli.app", "a3_jax.cli.app"])
def test_ctrl_c_before_a_command_began(package, monkeypatch, capsys):
    module = importlib.import_module(package)

    def app(**_):
        raise typer.Abort

    monkeypatch.setattr(module, "app", app)
    assert module.main(["--help"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("package", ["anyprec_jax.cli.app", "ginex_jax.cli.app", "a3_jax.cli.app"])
def test_version(package, monkeypatch, capsys):
    monkeypatch.setattr(application, "version", {"bandwise": "1.2.3"}.get)
    assert importlib.import_module(package).main(["--version"]) == 0
    assert capsys.readouterr().out == "bandwise 1.2.3\n"


def test_version_of_sources(monkeypatch, capsys):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(application, "version", version)
    assert (
        run_application(
            application.application("command", "What it does.", example="command it"), "command", ["--version"]
        )
        == 0
    )
    assert "not installed" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["anyprec", "ginex", "a3"])
def test_without_arguments_the_help_is_shown(command):
    program = f"import bandwise_commands; bandwise_commands.{command}()"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Usage" in done.stdout + done.stderr and "error:" not in done.stdout + done.stderr
