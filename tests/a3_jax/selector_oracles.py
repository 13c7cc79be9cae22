"""The candidate selector from the paper: the pseudo-code of its figure 7 with heaps, and the queues of its figure 10 a cycle at a time."""

import collections
import heapq

import numpy as np


def pseudo_code(query, key, num_iterations, *, valid=None, skip=True):
    """Pops (row, column, product) of both sides, None where the minimum was skipped, and greedy scores."""
    n, d = key.shape
    valid = np.ones(n, bool) if valid is None else valid
    number = key.dtype.type if key.dtype.kind == "f" else int
    columns = [sorted((number(key[i, j]), i) for i in range(n) if valid[i]) for j in range(d)]
    gained, lost = [number(0)] * n, [number(0)] * n  # apart, as floats are rounded
    top = [column[::-1] if query[j] > 0 else column for j, column in enumerate(columns)]  # in the order of the max side
    number_of_rows = len(columns[0])

    def entry(side, j, position):
        value, row = top[j][position] if side == "max" else top[j][number_of_rows - 1 - position]
        product = value * number(query[j])
        return (-product if side == "max" else product, j, position, product, row)

    heaps = {side: [entry(side, j, 0) for j in range(d) if number_of_rows] for side in ("max", "min")}
    for heap in heaps.values():
        heapq.heapify(heap)
    positive = negative = number(0)
    pops = []
    for _ in range(min(num_iterations, number_of_rows * d)):
        popped = []
        for side in ("max", "min"):
            if side == "min" and skip and positive < -negative:
                popped.append(None)
                continue
            heap = heaps[side]
            _, j, position, product, row = heapq.heappop(heap)
            if side == "max" and product > 0:
                gained[row] += product
                positive += product
            if side == "min" and product < 0:
                lost[row] += product
                negative += product
            if position + 1 < number_of_rows:
                heapq.heappush(heap, entry(side, j, position + 1))
            popped.append((row, j, product))
        pops.append(popped)
    return pops, [more + less for more, less in zip(gained, lost, strict=True)]


def queue_cycles(pops, n, d, *, depth, latency):
    """The cycle of every pop, given what is popped: queues that fill and empty, looked at once a cycle; the first cycle is 0."""
    sides = [
        [{"ready": min(depth, n), "left": n - min(depth, n), "coming": collections.deque()} for _ in range(d)]
        for _ in range(2)
    ]

    def blocked(side):
        return any(queue["ready"] == 0 and (queue["left"] or queue["coming"]) for queue in sides[side])

    cycles, waits, now = [], [[], []], 0
    for pair in pops:
        wait = [0, 0]
        while True:
            for side in sides:
                for queue in side:
                    while queue["coming"] and queue["coming"][0] <= now:
                        queue["coming"].popleft()
                        queue["ready"] += 1
            if blocked(0):
                wait[0] += 1
            elif pair[1] is not None and blocked(1):
                wait[1] += 1
            else:
                break
            now += 1
        for side, pop in zip(sides, pair, strict=True):
            if pop is not None:
                queue = side[pop[1]]
                queue["ready"] -= 1
                if queue["left"]:
                    queue["left"] -= 1
                    queue["coming"].append(now + latency)
        cycles.append(now)
        for side in range(2):
            waits[side].append(wait[side])
        now += 1
    return cycles, waits


def scan_cycles(candidates, width):
    """The cycle in which each candidate is sent on, and the cycles in all: a priority encoder over a window that slides."""
    rest, position, now, sent = list(candidates), 0, 0, {}
    while rest:
        window = rest[:width]
        step = window.index(True) + 1 if True in window else len(window)
        if True in window:
            sent[position + step - 1] = now
        rest, position, now = rest[step:], position + step, now + 1
    return sent, now
