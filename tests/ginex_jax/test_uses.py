import collections

import numpy as np
import pytest

from ginex_jax.store.uses import count_ids, most_used


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_ids_are_counted_over_pieces(dtype: type) -> None:
    rng = np.random.default_rng(0)
    pieces = [rng.integers(0, 50, size).astype(dtype) for size in (0, 100, 7)]
    expected = collections.Counter(int(node) for piece in pieces for node in piece)
    assert count_ids(iter(pieces), 60).tolist() == [expected[node] for node in range(60)]


def test_the_most_used_are_found() -> None:
    uses = np.random.default_rng(0).integers(0, 9, 300)
    order = sorted(np.flatnonzero(uses).tolist(), key=lambda v: (-uses[v], v))
    for count in (0, 1, 40, len(order) - 1, len(order), 299, 300, 500):
        assert most_used(uses, count).tolist() == sorted(order[:count])
    assert most_used(np.empty(0, np.int64), 3).tolist() == []
