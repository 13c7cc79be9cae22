"""Against NumPy's stable argsort."""

import numpy as np
import pytest

from ginex_jax.ingest.radix_sort import sorted_with_weights


def keys_of(kind, rng):
    if kind == "all bits":
        return rng.integers(0, 1 << 64, 3000, np.uint64)
    if kind == "a gap between target and source":
        return rng.integers(0, 50, 3000).astype(np.uint64) << np.uint64(32) | rng.integers(0, 50, 3000).astype(
            np.uint64
        )
    if kind == "the last bit":
        return rng.integers(0, 2, 3000).astype(np.uint64)
    if kind == "the first bit":
        return rng.integers(0, 2, 3000).astype(np.uint64) << np.uint64(63)
    if kind == "every tenth bit":
        return rng.integers(0, 1 << 64, 3000, np.uint64) & np.uint64(sum(1 << bit for bit in range(0, 64, 10)))
    if kind == "one key":
        return np.full(3000, 2**63 + 5, np.uint64)
    return np.arange({"none": 0, "one": 1}[kind], dtype=np.uint64)


@pytest.mark.parametrize(
    "kind",
    [
        "all bits",
        "a gap between target and source",
        "the last bit",
        "the first bit",
        "every tenth bit",
        "one key",
        "none",
        "one",
    ],
)
def test_equals_stable_argsort(kind):
    rng = np.random.default_rng(0)
    keys = keys_of(kind, rng)
    weights = rng.random(len(keys), np.float32)
    order = np.argsort(keys, kind="stable")
    expected = keys[order].tolist(), weights[order].tolist()
    sorted_keys, sorted_weights = sorted_with_weights(keys, weights)
    assert (sorted_keys.tolist(), sorted_weights.tolist()) == expected
