"""Sizes as people write them."""

import pytest

from ginex_jax.cli.byte_sizes import parse_bytes


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("2GiB", 2 << 30), ("512 MiB", 512 << 20), ("1.5kb", 1500), ("8GB", 8 * 10**9), ("7", 7), ("1TiB", 1 << 40)],
)
def test_sizes(text, num_bytes):
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "much", "-1GB", "1 XB", "0", "0.1B", "1e9", "GiB", "9" * 400, "9" * 30 + "TB"])
def test_refusals(text):
    with pytest.raises(ValueError, match="a size"):
        parse_bytes(text)
