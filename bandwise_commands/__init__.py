"""The installed commands, as far as they go before their packages are imported, which takes seconds: Ctrl-C ends them quietly.

Not part of the packages themselves: what lies in one is imported after it. Nothing but the standard library is imported here; the modules
beside this one are what the commands share afterwards.
"""

import importlib
import os
import signal

_INTERRUPTED = 130


def anyprec() -> None:
    """The `anyprec` command."""
    _run("anyprec_jax.cli")


def ginex() -> None:
    """The `ginex` command."""
    _run("ginex_jax.cli")


def a3() -> None:
    """The `a3` command."""
    _run("a3_jax.cli")


def _run(module: str) -> None:
    signal.signal(signal.SIGINT, _end)
    importlib.import_module(module).run()  # which takes the signal over


def _end(_number: int, _frame: object) -> None:
    """At once: nothing has begun, and an exception in the middle of an import may come out as another one, or not at all."""
    os.write(2, b"interrupted\n")
    os._exit(_INTERRUPTED)
