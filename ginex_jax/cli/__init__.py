"""The `ginex` command."""

from ginex_jax.cli.app import main as main
from ginex_jax.cli.app import run as run
