"""What compact codebooks stand for, entry by entry, from the table in docs/anyprec.md and not from the code."""

import numpy as np

SPANS = (*range(21), 22, 24, 27, 30, 35, 40, 45, 50, 57, 64, 73)


def rounded(value: float) -> float:
    """To float32 and then float16, which does not overflow."""
    return float(np.float16(np.float32(min(max(value, -65504.0), 65504.0))))


def decoded_row(entries: dict[int, np.ndarray], scales: dict[int, np.ndarray], precision: int) -> list[float]:
    """One row's codebook at one precision."""
    seed = min(scales)
    unit, offset = map(float, scales[seed])
    book = [rounded(offset + int(byte) * unit / 128) for byte in entries[seed]]
    for w in range(seed + 1, precision + 1):
        numbers = [float(scale) for scale in scales[w]]
        children = []
        for parent, value in enumerate(book):
            if w <= max(seed, 6):
                byte = int(entries[w][parent])
                number = byte // 16 * 2
                if w == 6:
                    number += int(entries[w][len(book) + parent // 8]) >> (parent % 8) & 1
                part = SPANS[number] * numbers[0] / 128
                place = byte % 16 - 2
                children += [rounded(value - place * part), rounded(value + (11 - place) * part)]
                continue
            pair = parent // 2 * 2
            difference = rounded(book[pair + 1] - book[pair])
            if w == max(seed, 6) + 1:
                is_negative = int(entries[w][parent // 8]) >> (parent % 8) & 1
                factor = -numbers[0] if is_negative else numbers[0]
            else:
                factor = numbers[parent % 2]
            children += [value, rounded(value + factor * difference)]
        book = children
    return book
