"""The `anyprec` command."""

from anyprec_jax.cli.app import main as main
from anyprec_jax.cli.app import run as run
