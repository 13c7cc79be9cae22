"""The line of threads: order, bounds, failures, stopping."""

import threading
import traceback

import pytest

from ginex_jax.pipeline.line import Channel, Line, StageTimes, StoppedError


def count_into(channel: "Channel[int]", stop: int, seen: list[int] | None = None):
    def work(times: StageTimes) -> None:
        for number in range(stop):
            channel.put(number, times)
            if seen is not None:
                seen.append(number)

    return work


def test_items_arrive_in_order_and_the_end_is_known() -> None:
    with Line() as line:
        first: Channel[int] = line.channel(2)
        second: Channel[int] = line.channel(2)

        def square(times: StageTimes) -> None:
            for number in first.items(times):
                second.put(number * number, times)

        line.stage("count", count_into(first, 100), first)
        line.stage("square", square, second)
        times = StageTimes()
        assert list(second.items(times)) == [number * number for number in range(100)]
        with pytest.raises(EOFError):
            second.take(times)
    assert line.times["count"].items == line.times["square"].items == 100


def test_a_queue_is_bounded() -> None:
    seen: list[int] = []
    with Line() as line:
        channel: Channel[int] = line.channel(3)
        line.stage("count", count_into(channel, 100, seen), channel)
        assert channel.take(StageTimes()) == 0
        with pytest.raises(TimeoutError):
            wait_until(lambda: len(seen) > 4)  # one taken, three in the queue
        assert len(seen) == 4


def wait_until(condition, seconds: float = 0.2) -> None:
    event = threading.Event()
    for _ in range(20):
        if condition():
            return
        event.wait(seconds / 20)
    raise TimeoutError


def test_a_failure_reaches_the_reader_with_its_own_traceback_and_stops_the_others() -> None:
    with Line() as line:
        numbers: Channel[int] = line.channel(1)
        results: Channel[int] = line.channel(1)

        def fails_at_three(times: StageTimes) -> None:
            for number in numbers.items(times):
                if number == 3:
                    raise OSError("the disk has gone")
                results.put(number, times)

        line.stage("count", count_into(numbers, 10**9), numbers)
        line.stage("fails", fails_at_three, results)
        got = []
        with pytest.raises(OSError, match="the disk has gone") as caught:
            got.extend(results.items(StageTimes()))
        assert any("fails_at_three" in frame.name for frame in traceback.extract_tb(caught.value.__traceback__))
    assert got == [0, 1, 2][: len(got)]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ginex-")]


def test_closing_ends_threads_that_wait_for_room() -> None:
    line = Line()
    channel: Channel[int] = line.channel(1)
    line.stage("count", count_into(channel, 10**9), channel)
    channel.take(StageTimes())
    line.close()
    line.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ginex-")]
    with pytest.raises(StoppedError):
        while True:
            channel.put(1, StageTimes())


def test_stage_times_add_up() -> None:
    with Line() as line:
        channel: Channel[int] = line.channel(1)
        gate = threading.Event()

        def slow(times: StageTimes) -> None:
            channel.put(1, times)
            channel.put(2, times)  # waits for the reader

        line.stage("slow", slow, channel)
        gate.wait(0.1)
        list(channel.items(StageTimes()))
    times = line.times["slow"]
    assert times.blocked >= 0.05
    assert times.busy + times.blocked + times.starved == pytest.approx(times.life)
