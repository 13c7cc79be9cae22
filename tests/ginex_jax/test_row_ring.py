"""Regions of the ring: no two overlap, none is lost, and they come back when nobody looks at them."""

import gc

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ginex_jax.gather.row_ring import Region, RowRing


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 40), st.sampled_from([1, 3, 16]), st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=60)
)
def test_regions_in_use_never_overlap(num_rows: int, width: int, requests: list[tuple[int, bool]]) -> None:
    ring = RowRing(num_rows, width, np.dtype(np.float32))
    in_use: list[Region] = []
    for size, release in requests:
        if size > num_rows:
            with pytest.raises(ValueError, match="allow more"):
                ring.take(size)
            continue
        region = ring.take(size)
        if region is None:
            assert in_use, "an empty ring has room"
        else:
            rows = set(range(region.start, region.start + size))
            assert not any(rows & set(range(other.start, other.start + other.num_rows)) for other in in_use)
            assert region.start + size <= num_rows
            assert region.start * width * 4 % 64 == 0
            in_use.append(region)
        if release and in_use:
            in_use.pop(0).released = True


def test_a_region_comes_back_when_the_last_view_is_gone() -> None:
    ring, dropped = RowRing(10, 4, np.dtype(np.float32)), []
    region = ring.take(10)
    assert region is not None
    view = ring.view(region, lambda: dropped.append(1))
    part = view[3:5].T
    del view
    assert not region.released and ring.take(1) is None
    del part
    assert region.released and dropped == [1]
    assert ring.take(1) is not None


def test_jax_keeps_what_it_reads_without_copying() -> None:
    ring = RowRing(64, 16, np.dtype(np.float32))
    region = ring.take(64)
    assert region is not None
    view = ring.view(region)
    view[:] = 3.0
    array = jax.device_put(view)
    del view
    gc.collect()
    assert not region.released or array.unsafe_buffer_pointer() != ring.rows.ctypes.data  # a copy may be let go
    np.testing.assert_array_equal(array, 3.0)
    del array
    gc.collect()
    assert region.released


def test_dtypes_that_numpy_has_no_name_for() -> None:
    import ml_dtypes

    ring = RowRing(8, 3, np.dtype(ml_dtypes.bfloat16))
    region = ring.take(4)
    assert region is not None
    view = ring.view(region)
    view[:] = 1.5
    assert view.dtype == ml_dtypes.bfloat16 and view.shape == (4, 3)
    np.testing.assert_array_equal(ring.rows[region.start : region.start + 4], np.float32(1.5))


def test_a_ring_is_held_when_all_is_delivered() -> None:
    ring = RowRing(8, 16, np.dtype(np.float32))
    first, second = ring.take(2), ring.take(2)
    assert first is not None and second is not None
    first.delivered = True
    assert not ring.is_held
    second.delivered = True
    assert ring.is_held
