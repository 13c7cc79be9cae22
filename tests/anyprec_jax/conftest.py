"""The algorithms of anyprec_jax never mix dtypes by accident: implicit promotion is an error in every test here."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_dtype_promotion() -> Iterator[None]:
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def quick_compilation() -> Iterator[None]:
    """For tests that compile many tiny programs, of which compiling is most of the time: what is left out are optimizations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
