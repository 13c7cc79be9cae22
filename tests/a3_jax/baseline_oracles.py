"""Selections within a number of bytes, a row at a time, from the papers' descriptions; floats are float64 and budgets exact."""

import math

import numpy as np


def exact_oracle(
    query: np.ndarray, key: np.ndarray, valid: list[int], budget: float, value_dim: int, size: float
) -> tuple[set[int], float]:
    dim = key.shape[1]
    return _take(key @ query, valid, budget, fixed=len(valid) * dim * size, each=value_dim * size)


def known_oracle(
    query: np.ndarray, key: np.ndarray, valid: list[int], budget: float, value_dim: int, size: float
) -> tuple[set[int], float]:
    return _take(key @ query, valid, budget, fixed=0, each=(key.shape[1] + value_dim) * size)


def window_oracle(
    key: np.ndarray, valid: list[int], budget: float, value_dim: int, size: float, sinks: int
) -> tuple[set[int], float]:
    each = (key.shape[1] + value_dim) * size
    rows: list[int] = []
    # Sinks in order, then from the last row backwards, until the money is spent.
    for row in [*valid[:sinks], *reversed(valid[sinks:])]:
        if (len(rows) + 1) * each > budget:
            break
        rows.append(row)
    return set(rows), len(rows) * each


def sparq_oracle(
    query: np.ndarray, key: np.ndarray, valid: list[int], budget: float, value_dim: int, size: float, num_columns: int
) -> tuple[set[int], float]:
    columns = sorted(range(len(query)), key=lambda j: (-abs(query[j]), j))[:num_columns]
    estimates = sum((query[j] * key[:, j] for j in columns), np.zeros(len(key)))
    each = (key.shape[1] + value_dim) * size
    return _take(estimates, valid, budget, fixed=len(valid) * num_columns * size, each=each)


def quest_oracle(
    query: np.ndarray, key: np.ndarray, valid: list[int], budget: float, value_dim: int, size: float, page_size: int
) -> tuple[set[int], float]:
    pages: dict[int, list[int]] = {}
    for row in valid:
        pages.setdefault(row // page_size, []).append(row)
    bounds = np.full(max(pages, default=0) + 1, -np.inf)
    for page, rows in pages.items():
        corners = [[query[j] * key[rows, j].min(), query[j] * key[rows, j].max()] for j in range(len(query))]
        bounds[page] = sum(max(corner) for corner in corners)
    dim = key.shape[1]
    chosen, spent = _take(
        bounds,
        sorted(pages),
        budget,
        fixed=2 * dim * size * len(pages),
        each=page_size * (dim + value_dim) * size,
    )
    return {row for page in chosen for row in pages[page]}, spent


def hash_oracle(
    query: np.ndarray,
    key: np.ndarray,
    directions: np.ndarray,
    valid: list[int],
    budget: float,
    value_dim: int,
    size: float,
    angle_bias: float,
) -> tuple[set[int], float]:
    bits = len(directions)
    estimates = np.zeros(len(key))
    for row in range(len(key)):
        differing = sum((direction @ key[row] > 0) != (direction @ query > 0) for direction in directions)
        angle = max(math.pi * differing / bits - angle_bias, 0)
        estimates[row] = np.linalg.norm(key[row]) * math.cos(angle)
    each = (key.shape[1] + value_dim) * size
    return _take(estimates, valid, budget, fixed=len(valid) * (bits / 8 + size), each=each)


def _take(
    estimates: np.ndarray, valid: list[int], budget: float, *, fixed: float, each: float
) -> tuple[set[int], float]:
    chosen: set[int] = set()
    spent = fixed
    for row in sorted(valid, key=lambda row: (-estimates[row], row)):
        if spent + each > budget:
            break
        chosen.add(row)
        spent += each
    return (chosen, spent) if chosen else (chosen, 0.0)


def sparq_weight_oracle(query: np.ndarray, key: np.ndarray, rows: list[int], num_columns: int) -> float:
    """Alpha of SparQ's algorithm 1, of all rows of the key; the scale is 1."""
    columns = sorted(range(len(query)), key=lambda j: (-abs(query[j]), j))[:num_columns]
    temperature = math.sqrt(sum(abs(query[j]) for j in columns) / sum(abs(query)))
    estimates = [math.exp(sum(query[j] * row[j] for j in columns) / temperature) for row in key]
    return sum(estimates[row] for row in rows) / sum(estimates)
