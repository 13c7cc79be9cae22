"""A3's pipeline in plain Python integers of any size, written from the paper: pseudo-code of figures 5 and 7, widths of section III-B.

Nothing here knows of int32, of JAX, or of how the package computes.
"""

import functools
import heapq
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

BITS = 400  # of the binary fractions that powers of e are computed in


class Outcome(NamedTuple):
    output: list[int]
    candidates: list[bool]
    kept: list[bool]
    iterations: int


@functools.cache
def exp_minus(x: Fraction) -> Fraction:
    """exp(-x) for x in [0, 2^24], wrong by far less than 2^-200: Taylor series of a small argument, squared again and again."""
    halvings = 0
    while x > Fraction(1, 2):
        x, halvings = x / 2, halvings + 1
    one = 1 << BITS
    argument, term, total, k = int(x * one), one, one, 1
    while term:
        term = term * argument // (k << BITS)
        total += -term if k % 2 else term
        k += 1
    for _ in range(halvings):
        total = total * total >> BITS
    return Fraction(total, one)


def rounded(x: Fraction, rounding: str) -> int:
    """Down, or to the nearest with halves up."""
    if rounding == "nearest":
        x += Fraction(1, 2)
    return x.numerator // x.denominator


def score_of(distance: int, o: Any) -> int:
    """Exponent of minus `distance` units of 2^-2f, o the options."""
    bits = o.index_integer_bits + o.index_fraction_bits
    index = distance * 2**o.index_fraction_bits // 4**o.fraction_bits
    index = min(index, 2**bits - 1)
    low_bits = bits // 2
    low = index % 2**low_bits
    entries = [
        rounded(exp_minus(Fraction(part, 2**o.index_fraction_bits)) * 2**o.entry_bits, o.entry_rounding)
        for part in (index - low, low)
    ]
    score = rounded(Fraction(entries[0] * entries[1] * 4**o.fraction_bits, 4**o.entry_bits), o.score_rounding)
    return min(score, one_of(o))


def one_of(o: Any) -> int:
    return 4**o.fraction_bits - (1 if o.score_of_one == "saturate" else 0)


def greedy(
    query: Sequence[int], key: Sequence[Sequence[int]], valid: Sequence[bool], iterations: int, skip: bool
) -> tuple[list[int], int, int]:
    """Greedy scores, the row of the first max entry, and the iterations that were made: heaps and pointers."""
    scores, d = [0] * len(key), len(query)
    columns = [sorted((key[i][j], i) for i in range(len(key)) if valid[i]) for j in range(d)]
    iterations = min(iterations, sum(map(len, columns)))
    paths = {
        "max": [column[::-1] if q > 0 else column for q, column in zip(query, columns, strict=True)],
        "min": [column if q > 0 else column[::-1] for q, column in zip(query, columns, strict=True)],
    }
    heaps: dict[str, list[tuple[int, int, int]]] = {"max": [], "min": []}
    pointer = {side: [0] * d for side in heaps}

    def push(side: str, j: int) -> None:
        if pointer[side][j] < len(paths[side][j]):
            product = paths[side][j][pointer[side][j]][0] * query[j]
            heapq.heappush(heaps[side], (-product if side == "max" else product, j, pointer[side][j]))

    def pop(side: str) -> tuple[int, int]:
        signed, j, place = heapq.heappop(heaps[side])
        pointer[side][j] += 1
        push(side, j)
        return (-signed if side == "max" else signed), paths[side][j][place][1]

    for j in range(d):
        push("max", j)
        push("min", j)
    total, first = 0, None
    for _ in range(iterations):
        product, row = pop("max")
        first = row if first is None else first
        if product > 0:
            scores[row] += product
            total += product
        if skip and total < 0:
            continue
        product, row = pop("min")
        if product < 0:
            scores[row] += product
            total += product
    return scores, first if first is not None else -1, iterations


def attend(
    query: Sequence[int],
    key: Sequence[Sequence[int]],
    value: Sequence[Sequence[int]],
    o: Any,
    *,
    iterations: int | None,
    threshold: Fraction | None,
    valid: Sequence[bool],
    fallback: str,
    skip: bool = True,
) -> Outcome:
    """One query. `threshold` is the least ratio of a kept row's true exponential to the largest one's (T / 100)."""
    n, made = len(key), 0
    chosen = [i for i in range(n) if valid[i]]
    if iterations is not None:
        scores, first, made = greedy(query, key, valid, iterations, skip)
        found = [i for i in chosen if scores[i] > 0]
        if not found and chosen:
            found = {
                "largest_product": lambda: [first],
                "argmax": lambda: [max(chosen, key=lambda i: (scores[i], -i))],
                "all": lambda: chosen,
            }[fallback]()
        chosen = found
    dot = {i: sum(k * q for k, q in zip(key[i], query, strict=True)) for i in chosen}
    best = max(dot.values(), default=0)
    units = 4**o.fraction_bits
    kept = [
        i
        for i in chosen
        if threshold is None or dot[i] == best or exp_minus(Fraction(best - dot[i], units)) >= threshold
    ]
    score = {i: score_of(best - dot[i], o) for i in kept}
    expsum = sum(score.values())
    width = len(value[0])
    if not kept:
        output = [0] * width
    elif o.division == "late":
        sums = [sum(score[i] * value[i][j] for i in kept) for j in range(width)]
        output = [rounded(Fraction(total * units, expsum), o.division_rounding) for total in sums]
    else:
        weight = {i: min(rounded(Fraction(score[i] * units, expsum), o.division_rounding), one_of(o)) for i in kept}
        output = [sum(weight[i] * value[i][j] for i in kept) for j in range(width)]
    return Outcome(output, [i in chosen for i in range(n)], [i in kept for i in range(n)], made)
