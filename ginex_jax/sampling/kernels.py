"""Compiled loops of the sampler. Importing this module imports numba.

A node's neighbours are chosen by the stream of numbers of its own, keyed by (seed, epoch, batch, hop, node): so the loops may be cut and
ordered at will. All of them run without the interpreter's lock.
"""

import math

import numpy as np

from ginex_jax.compilation import compiled, inlined
from ginex_jax.random_numbers import GOLDEN, bounded, hashed, uniform

LABEL_BITS = 28  # of an entry of the hash table; the node's id takes the other bits
MAX_LABELS, MAX_NODES = 2**LABEL_BITS, 2 ** (63 - LABEL_BITS)
EMPTY = -1
_LABELS = MAX_LABELS - 1
_ROWS_AT_ONCE = 64  # whose lists are read before they are numbered: reads that wait for memory wait together


@inlined
def _choose_uniformly(key, degree, chosen):
    """Distinct numbers below `degree`, as many as `chosen` holds or all: every set as likely (Floyd; Bentley, 1987). Returns how many.

    O(fanout**2), in cache.
    """
    fanout = len(chosen)
    if degree <= fanout:
        for j in range(degree):
            chosen[j] = j
        return degree
    for j in range(fanout):
        last = degree - fanout + j
        choice = bounded(key, j, last + 1)
        for other in range(j):
            if chosen[other] == choice:
                choice = last
                break
        chosen[j] = choice
    return fanout


@inlined
def _choose_by_weight(key, weights, start, degree, chosen, arrivals):
    """One after another without replacement, in proportion to weight, as if each edge arrived at a rate of its weight: the first to arrive.

    Efraimidis and Spirakis (2006). Edges of weight 0 never arrive. The number of draw i is that of the i-th edge of the list. In the
    order of arrival; returns how many.
    """
    fanout, count = len(chosen), 0
    for i in range(degree):
        weight = np.float64(weights[start + i])
        if weight <= 0.0:
            continue
        arrival = -math.log(uniform(key, i)) / weight
        if count == fanout:
            if arrival >= arrivals[count - 1]:
                continue
        else:
            count += 1
        j = count - 1
        while j > 0 and arrivals[j - 1] > arrival:
            arrivals[j], chosen[j] = arrivals[j - 1], chosen[j - 1]
            j -= 1
        arrivals[j], chosen[j] = arrival, i
    return count


@compiled
def choose(key, node_ids, starts, degrees, weights, by_weight, chosen, counts):
    """Which places of every node's list are drawn: `chosen[i, : counts[i]]`. The list's weights begin at `weights[starts[i]]`."""
    arrivals = np.empty(chosen.shape[1], np.float64)
    for i in range(len(node_ids)):
        node_key = hashed(key, node_ids[i])
        if by_weight:
            counts[i] = _choose_by_weight(node_key, weights, starts[i], degrees[i], chosen[i], arrivals)
        else:
            counts[i] = _choose_uniformly(node_key, degrees[i], chosen[i])


@inlined
def _local_id(node, node_ids, num_known, table, shift):
    """The local id of a node and how many are known afterwards; a new one goes to the end of `node_ids`."""
    mask = len(table) - 1
    place = np.int64((np.uint64(node) * GOLDEN) >> shift)
    while True:
        entry = table[place]
        if entry == EMPTY:
            table[place] = (np.int64(node) << LABEL_BITS) | num_known
            node_ids[num_known] = node
            return num_known, num_known + 1
        if entry >> LABEL_BITS == node:
            return entry & _LABELS, num_known
        place = (place + 1) & mask


@compiled
def rebuild(node_ids, num_known, table, shift):
    """Fills an empty table with the nodes known so far."""
    mask = len(table) - 1
    for label in range(num_known):
        place = np.int64((np.uint64(node_ids[label]) * GOLDEN) >> shift)
        while table[place] != EMPTY:
            place = (place + 1) & mask
        table[place] = (node_ids[label] << LABEL_BITS) | label


@compiled
def number(nodes, first, labels, node_ids, num_known, table, shift):
    """Local ids of `nodes[first:]`, until the memory for new ones is used up. Returns where it stopped, and how many are known."""
    for i in range(first, len(nodes)):
        if num_known == len(node_ids):
            return i, num_known
        labels[i], num_known = _local_id(nodes[i], node_ids, num_known, table, shift)
    return len(nodes), num_known


@compiled
def sample_hop(
    key, indptr, indices, weights, by_weight, first, neighbors, mask, drawn_weights, node_ids, num_known, table, shift
):
    """Draws and numbers the neighbours of the nodes `first` and up, one row of `neighbors` each, until memory for new nodes is short.

    Returns the row at which it stopped, and how many nodes are known. `drawn_weights` is filled where it has rows.
    """
    num_rows, fanout = neighbors.shape
    chosen, arrivals = np.empty(fanout, np.int64), np.empty(fanout, np.float64)
    nodes, counts = np.empty((_ROWS_AT_ONCE, fanout), np.int64), np.empty(_ROWS_AT_ONCE, np.int64)
    for row in range(first, num_rows, _ROWS_AT_ONCE):
        stop = min(row + _ROWS_AT_ONCE, num_rows)
        if num_known + (stop - row) * fanout > len(node_ids):
            return row, num_known
        for i in range(row, stop):
            node = node_ids[i]
            start, degree, node_key = indptr[node], indptr[node + 1] - indptr[node], hashed(key, node)
            if by_weight:
                count = _choose_by_weight(node_key, weights, start, degree, chosen, arrivals)
            else:
                count = _choose_uniformly(node_key, degree, chosen)
            for j in range(count):
                nodes[i - row, j] = indices[start + chosen[j]]
            if len(drawn_weights):
                for j in range(fanout):
                    drawn_weights[i, j] = weights[start + chosen[j]] if j < count else 0.0
            counts[i - row] = count
        for i in range(row, stop):
            for j in range(fanout):
                mask[i, j] = j < counts[i - row]
                neighbors[i, j] = 0
            for j in range(counts[i - row]):
                neighbors[i, j], num_known = _local_id(nodes[i - row, j], node_ids, num_known, table, shift)
    return num_rows, num_known


@compiled
def draw_nodes(key, first, first_draw, num_nodes, drawn):
    """Fills row i of `drawn` with nodes, uniform and independent, from number `first_draw` on of the stream of row `first + i`."""
    for i in range(drawn.shape[0]):
        row_key = hashed(key, first + i)
        for j in range(drawn.shape[1]):
            drawn[i, j] = bounded(row_key, first_draw + j, num_nodes)


@compiled
def number_pairs(key, pairs, numbers):
    """Numbers between 0 and 1, each a function of the pair of nodes in its row."""
    for i in range(len(pairs)):
        numbers[i] = uniform(hashed(key, pairs[i, 0]), pairs[i, 1])


@inlined
def _first_at_least(keys, wanted, start, stop):
    """The first place from `start` on, before `stop`, whose key is not below `wanted`; else `stop`. Keys ascend."""
    while start < stop:
        middle = (start + stop) >> 1
        if keys[middle] < wanted:
            start = middle + 1
        else:
            stop = middle
    return start


@compiled
def mark_edges(keys, num_nodes, node_ids, owners, entries, mask, gone, counts):
    """Marks in `gone`, and counts row by row, the entries whose edge into the row's owner has a key `target * num_nodes + source`."""
    for row in range(len(owners)):
        base = node_ids[owners[row]] * num_nodes
        start = _first_at_least(keys, base, 0, len(keys))
        if start == len(keys) or keys[start] >= base + num_nodes:
            continue
        stop = start + 1
        while stop < len(keys) and keys[stop] < base + num_nodes:
            stop += 1
        for j in range(entries.shape[1]):
            if mask[row, j]:
                key = base + node_ids[entries[row, j]]
                place = _first_at_least(keys, key, start, stop)
                if place < stop and keys[place] == key:
                    gone[row, j] = True
                    counts[row] += 1
