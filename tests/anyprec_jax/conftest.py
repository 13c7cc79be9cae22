"""The algorithms of anyprec_jax never mix dtypes by accident: implicit promotion is an error in every test here."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_dtype_promotion() -> Iterator[None]:
    with jax.numpy_dtype_promotion("strict"):
        yield
