"""Threads in a row, with bounded queues between them: one that fails stops them all, and its exception reaches the reader."""

import collections
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class StoppedError(Exception):
    """Raised inside the line's own threads when it is time to go home."""


class StageTimes:
    """Seconds a stage waited for input, and for room for its output; the rest of its life it was busy."""

    def __init__(self) -> None:
        self.starved = 0.0
        self.blocked = 0.0
        self.life = 0.0
        self.items = 0

    @property
    def busy(self) -> float:
        return max(0.0, self.life - self.starved - self.blocked)


class Line:
    """The threads of one run. A context manager: on leaving, all are told to stop and waited for."""

    def __init__(self) -> None:
        self.times: dict[str, StageTimes] = {}
        self._changed = threading.Condition()  # one for all queues: there are few, and items are large
        self._stopped = False
        self._failure: BaseException | None = None
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def channel(self, capacity: int) -> "Channel[Item]":
        """A queue of at most `capacity` items between two stages."""
        return Channel(capacity, self._changed, self._check)

    def stage(self, name: str, work: Callable[[StageTimes], None], *outputs: "Channel[Item]") -> None:
        """Starts a thread that does `work` and then closes its outputs."""
        times = self.times.setdefault(name, StageTimes())

        def run() -> None:
            start = time.perf_counter()
            try:
                with contextlib.suppress(StoppedError):
                    work(times)
                    for output in outputs:
                        output.close()
            except BaseException as error:  # whatever it is, the reader is told
                self._fail(error)
            finally:
                times.life += time.perf_counter() - start

        thread = threading.Thread(target=run, name=f"ginex-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def wait(self, condition: Callable[[], bool]) -> float:
        """Waits until the condition holds, which only `notify` or a queue changes; `StoppedError` if the line stops. Returns seconds."""
        start = time.perf_counter()
        with self._changed:
            while not condition():
                self._check()
                self._changed.wait()
            self._check()
        return time.perf_counter() - start

    @contextlib.contextmanager
    def notify(self) -> Iterator[None]:
        """Holds the lock that `wait` evaluates its condition under, and wakes the waiting when done."""
        with self._changed:
            yield
            self._changed.notify_all()

    def stop(self) -> None:
        """Tells all threads to stop at their next queue."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def close(self) -> None:
        """Stops all threads and waits for them. What is under way, such as a read, is finished first."""
        self.stop()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._stopped = True
            self._changed.notify_all()

    def _check(self) -> None:
        """What ends a wait: in the line's threads and in the reader's alike."""
        if self._failure is not None and threading.current_thread() not in self._threads:
            raise self._failure
        if self._stopped:
            raise StoppedError


class Channel(Generic[Item]):
    """A bounded queue that knows its end."""

    def __init__(self, capacity: int, changed: threading.Condition, check: Callable[[], None]) -> None:
        self._capacity, self._changed, self._check = capacity, changed, check
        self._items: collections.deque[Item] = collections.deque()
        self._closed = False

    def put(self, item: Item, times: StageTimes) -> None:
        """Waits for room."""
        start = time.perf_counter()
        with self._changed:
            while len(self._items) >= self._capacity:
                self._check()
                self._changed.wait()
            self._check()
            self._items.append(item)
            self._changed.notify_all()
        times.blocked += time.perf_counter() - start
        times.items += 1

    def take(self, times: StageTimes, give_up: Callable[[], None] = lambda: None) -> Item:
        """Waits for an item; raises EOFError at the end. `give_up` may raise, when waiting is in vain.

        What a stopped line has left is not handed out: its memory may be in other hands by now.
        """
        start = time.perf_counter()
        try:
            with self._changed:
                while self._items or not self._closed:
                    self._check()
                    if self._items:
                        self._changed.notify_all()
                        return self._items.popleft()
                    give_up()
                    self._changed.wait()
                raise EOFError
        finally:
            times.starved += time.perf_counter() - start

    def take_ready(self) -> Item | None:
        """The next item if there is one now."""
        with self._changed:
            if not self._items:
                return None
            self._changed.notify_all()
            return self._items.popleft()

    def peek(self) -> Item | None:
        """The next item if there is one now; it stays."""
        with self._changed:
            return self._items[0] if self._items else None

    def items(self, times: StageTimes) -> Iterator[Item]:
        """All items until the end."""
        while True:
            try:
                item = self.take(times)
            except EOFError:
                return
            yield item

    def close(self) -> None:
        """No more items will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
