"""Work on the rows of a matrix, which are independent, spread over the processor's cores."""

import concurrent.futures
import os
from collections.abc import Callable


def for_rows(work: Callable[[slice], None], *, num_rows: int, rows_at_once: int) -> None:
    """Calls `work` on one run of rows after the other, on as many threads as there are CPUs; the first failure is raised.

    `work` must release the interpreter's lock to gain anything. The runs do not depend on the number of threads.
    """
    runs = [slice(start, min(start + rows_at_once, num_rows)) for start in range(0, num_rows, rows_at_once)]
    with concurrent.futures.ThreadPoolExecutor(num_threads()) as executor:
        for _ in executor.map(work, runs):
            pass  # the first run that failed raises


def num_threads() -> int:
    """One per CPU this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
