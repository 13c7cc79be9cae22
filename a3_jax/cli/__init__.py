"""The `a3` command."""

from a3_jax.cli.app import main as main
from a3_jax.cli.app import run as run
