"""Transfers run ahead in a thread, give memory back at once, and pass failures on."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from ginex_jax.batch import BatchShape, MiniBatch
from ginex_jax.pipeline.loading import BatchReport, LoadedBatch
from ginex_jax.pipeline.transferring import TransferringStream


class Numbers:
    """A stream of batches whose one feature is the step; an endless one unless `stop` is given."""

    def __init__(self, stop: int = 10**9, *, fails_at: int | None = None) -> None:
        self._stop, self._fails_at = stop, fails_at
        self.taken, self.released, self.closed = 0, [], False

    def __iter__(self) -> Iterator[LoadedBatch]:
        return self

    def __next__(self) -> LoadedBatch:
        step = self.taken
        if self.closed or step == self._stop:
            raise StopIteration
        if step == self._fails_at:
            raise OSError("the disk has gone")
        self.taken += 1
        empty = np.empty(0, np.int32)
        batch = MiniBatch(empty.astype(np.int64), (), empty, empty.astype(bool), (0,), BatchShape(0, (0,), ()))
        return LoadedBatch(
            step=step,
            epoch=0,
            index=step,
            batch=batch,
            features=np.full((1, 1), step, np.float32),
            report=BatchReport(rows=1, misses=step),
            release=lambda: self.released.append(step),
        )

    def __enter__(self) -> "Numbers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed = True


def square(loaded: LoadedBatch) -> float:
    return float(loaded.features[0, 0]) ** 2


@pytest.mark.parametrize("ahead", [False, True])
def test_every_batch_is_transferred_in_order_and_released(ahead: bool) -> None:
    numbers = Numbers(20)
    with TransferringStream(numbers, square, ahead=ahead) as stream:
        got = [(batch.step, batch.inputs, batch.report.misses) for batch in stream]
    assert got == [(step, step**2, step) for step in range(20)]
    assert numbers.released == list(range(20)) and numbers.closed


def test_it_runs_one_ahead_and_no_further() -> None:
    numbers = Numbers()
    with TransferringStream(numbers, square) as stream:
        next(stream)
        for _ in range(100):
            if numbers.taken == 3:  # one given, one waiting, one that waits for room
                break
            threading.Event().wait(0.01)
        threading.Event().wait(0.05)
        assert numbers.taken == 3
        assert numbers.released == [0, 1, 2]
    assert_no_threads()


@pytest.mark.parametrize("ahead", [False, True])
def test_failures_of_the_stream_and_of_the_transfer_are_passed_on(ahead: bool) -> None:
    with (
        pytest.raises(OSError, match="the disk has gone"),
        TransferringStream(Numbers(fails_at=3), square, ahead=ahead) as stream,
    ):
        for _ in stream:
            pass

    def refuse(loaded: LoadedBatch) -> float:
        raise MemoryError("no room on the device")

    with pytest.raises(MemoryError, match="no room"), TransferringStream(Numbers(), refuse, ahead=ahead) as stream:
        next(stream)
    assert_no_threads()


def test_closing_closes_the_stream_and_ends_the_thread() -> None:
    numbers = Numbers()
    stream = TransferringStream(numbers, square)
    next(stream)
    stream.close()
    stream.close()
    assert numbers.closed
    assert_no_threads()
    with pytest.raises(ValueError, match="closed"):
        while True:
            next(stream)


def assert_no_threads() -> None:
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("ginex-")]
