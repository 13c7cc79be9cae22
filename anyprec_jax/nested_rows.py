"""Descent over the codes and codebooks of rows under a full second moment: what `refit` and `joint_codes` are made of.

Rows are independent. With w a row, q_p what precision p reads it as, and G the moment [k, k], the error of precision p is
E_p = (w - q_p) @ G @ (w - q_p). Kept beside codes and codebooks is its slope g_p = G @ (w - q_p), from which the effect of any single
change is known at once; a change costs k operations for every precision that it concerns. Compiled by numba and free of the
interpreter lock like `kmeans1d`; the rows of a call go through together, so that what they read of G stays in the cache.

Layout: `codes` [rows, k] at the parent precision; `books` [rows, entries] float32, the codebooks of all precisions one after the other,
that of precision seed + p from `2**(seed + p) - 2**seed` on; `slopes` [rows, precisions, k] float32.
"""

import math

import numpy as np

from anyprec_jax.kmeans1d import compiled

_EXACT_BITS = 6  # codebooks of up to 64 centroids are solved for; a larger one descends centroid by centroid
_GAIN = np.float32(1e-6)  # of a weighted error: what a change must gain, far above the rounding of slopes


@compiled
def descend_rows(weights, moment, seed, parent, importance, order, rounds, sweeps, codes, books, errors):
    """Alternates refits and sweeps over the codes, in place, and ends with a refit; fills errors[row, precision].

    With no rounds that is one refit. `importance` [precisions] float32 weighs the errors against each other; `order` is that of the
    columns in a sweep.
    """
    slopes = np.zeros((len(weights), parent - seed + 1, weights.shape[1]), np.float32)
    _fill_slopes(weights, moment, seed, parent, codes, books, slopes)
    for _ in range(rounds):
        _refit(moment, seed, parent, codes, books, slopes)
        for _ in range(sweeps):
            if not _sweep(moment, seed, parent, importance, order, codes, books, slopes):
                break
    _refit(moment, seed, parent, codes, books, slopes)
    _fill_errors(weights, seed, parent, codes, books, slopes, errors)


@compiled
def _fill_slopes(weights, moment, seed, parent, codes, books, slopes):
    """Slopes from scratch. Four lines of G at a time: a slope then makes a quarter of the way to and from the cache."""
    rows, k = weights.shape
    factors = np.empty(4, np.float32)
    for i in range(0, k, 4):
        few = min(4, k - i)
        for r in range(rows):
            for p in range(parent - seed + 1):
                first, shift = (1 << (seed + p)) - (1 << seed), parent - seed - p
                for a in range(few):
                    factors[a] = weights[r, i + a] - books[r, first + (codes[r, i + a] >> shift)]
                _add_lines(slopes[r, p], factors, moment[i : i + few])


@compiled
def _add_lines(target, factors, lines):
    """target += factors @ lines, of up to four lines"""
    if len(lines) == 4:
        a, b, c, d = lines[0], lines[1], lines[2], lines[3]
        fa, fb, fc, fd = factors[0], factors[1], factors[2], factors[3]
        for j in range(len(target)):
            target[j] += (fa * a[j] + fb * b[j]) + (fc * c[j] + fd * d[j])
    else:
        for i in range(len(lines)):
            _add(target, factors[i], lines[i])


@compiled
def _add(target, factor, line):
    """target += factor * line"""
    for j in range(len(target)):
        target[j] += factor * line[j]


@compiled
def _fill_errors(weights, seed, parent, codes, books, slopes, errors):
    rows, k = weights.shape
    for r in range(rows):
        for p in range(parent - seed + 1):
            total = 0.0
            for i in range(k):
                entry = (1 << (seed + p)) - (1 << seed) + (codes[r, i] >> (parent - seed - p))
                total += np.float64(weights[r, i] - books[r, entry]) * slopes[r, p, i]
            errors[r, p] = total


@compiled
def _sweep(moment, seed, parent, importance, order, codes, books, slopes):
    """Gives every weight of every row the code that is best while all else stays; returns how many codes changed.

    The error of precision p changes by moment[i, i] * ((centroid - target_p)**2 - (old centroid - target_p)**2), where
    target_p = old centroid + slope / moment[i, i]: the best code minimises the sum over precisions of importance times the first square.
    """
    rows = len(codes)
    precisions = parent - seed + 1
    targets = np.empty(precisions, np.float32)
    levels, nodes, sums = np.empty(512, np.int64), np.empty(512, np.int64), np.empty(512, np.float32)
    changed = 0
    for i in order:
        line = moment[i]
        for r in range(rows):
            old = np.int64(codes[r, i])
            book = books[r]
            for p in range(precisions):
                entry = (1 << (seed + p)) - (1 << seed) + (old >> (parent - seed - p))
                targets[p] = book[entry] + slopes[r, p, i] / line[i]
            new = _best_leaf(book, targets, importance, seed, precisions, old, levels, nodes, sums)
            if new == old:
                continue
            codes[r, i] = new
            changed += 1
            for p in range(precisions):
                first, shift = (1 << (seed + p)) - (1 << seed), parent - seed - p
                step = book[first + (new >> shift)] - book[first + (old >> shift)]
                if step != 0.0:
                    _add(slopes[r, p], -step, line)
    return changed


@compiled
def _best_leaf(book, targets, importance, seed, precisions, old, levels, nodes, sums):
    """The code that minimises the weighted sum of squares, `old` unless another is better. The last three are scratch.

    Codes are the leaves of a tree, and what a node and its ancestors add up to is a bound on its leaves: a subtree that cannot hold a
    better leaf than the best so far is not entered.
    """
    cost = np.float32(0.0)
    for p in range(precisions):
        distance = book[(1 << (seed + p)) - (1 << seed) + (old >> (precisions - 1 - p))] - targets[p]
        cost += importance[p] * distance * distance
    best, bound = old, cost * (np.float32(1.0) - _GAIN)
    depth = 0
    for node in range(1 << seed):
        distance = book[node] - targets[0]
        levels[depth], nodes[depth], sums[depth] = 0, node, importance[0] * distance * distance
        if sums[depth] < bound:
            depth += 1
    while depth > 0:
        depth -= 1
        level, node, total = levels[depth], nodes[depth], sums[depth]
        if total >= bound:
            continue
        if level == precisions - 1:
            best, bound = node, total
            continue
        first = (1 << (seed + level + 1)) - (1 << seed) + 2 * node
        weight, target = importance[level + 1], targets[level + 1]
        left = book[first] - target
        right = book[first + 1] - target
        left, right = total + weight * left * left, total + weight * right * right
        near = 2 * node + (1 if right < left else 0)
        levels[depth], nodes[depth], sums[depth] = level + 1, near ^ 1, max(left, right)
        levels[depth + 1], nodes[depth + 1], sums[depth + 1] = level + 1, near, min(left, right)
        depth += 2
    return best


@compiled
def _refit(moment, seed, parent, codes, books, slopes):
    """Lowers every codebook's error with the codes fixed, to its least for codebooks of up to 64 centroids; slopes follow."""
    rows, k = codes.shape
    exact = min(parent, max(seed, _EXACT_BITS))
    leaves = 1 << exact
    gathered = np.empty(
        (leaves, k), np.float32
    )  # the sums of the lines of G whose columns share a code of `exact` bits
    scratch = np.empty((parent - exact, k), np.float32)
    for r in range(rows):
        gathered[:] = 0.0
        _gather(moment, seed, parent, exact, codes[r], books[r], slopes[r], gathered, scratch)
        normal, right, counts = _normal_equations(gathered, codes[r], parent - exact, slopes[r], exact - seed + 1)
        for p in range(exact - seed, -1, -1):
            if p < exact - seed:
                normal, counts = _halved(normal, counts)
            size = 1 << (seed + p)
            book = books[r, size - (1 << seed) : 2 * size - (1 << seed)]
            steps = _solve(normal, _merged(right[p], size), counts)
            _take_steps(book, steps, gathered, slopes[r, p])


@compiled
def _take_steps(book, steps, gathered, slopes):
    run = len(gathered) // len(book)
    taken = np.empty(len(gathered), np.float32)
    for c in range(len(book)):
        new = np.float32(book[c] + steps[c])
        for leaf in range(c * run, (c + 1) * run):
            taken[leaf] = book[c] - new
        book[c] = new
    for leaf in range(0, len(gathered), 4):
        _add_lines(slopes, taken[leaf : leaf + 4], gathered[leaf : leaf + 4])


@compiled
def _gather(moment, seed, parent, exact, codes, book, slopes, gathered, scratch):
    """Sums the lines of G that share a code, and on the way moves each centroid of the large codebooks to where it is best while
    the others stay: scratch[d] is the sum for the code of exact + 1 + d bits that is being gathered."""
    members, starts = _by_code(codes, 1 << parent)
    scratch[:] = 0.0
    for leaf in range(1 << parent):
        deepest = scratch[parent - exact - 1] if parent > exact else gathered[leaf]
        for i in members[starts[leaf] : starts[leaf + 1]]:
            _add(deepest, np.float32(1.0), moment[i])
        for depth in range(parent - exact - 1, -1, -1):  # of the codes that end with this leaf
            bits = parent - exact - 1 - depth
            if (leaf + 1) & ((1 << bits) - 1):
                break
            code = leaf >> bits
            mine = members[starts[code << bits] : starts[(code + 1) << bits]]
            p = exact + 1 + depth - seed
            entry = (1 << (seed + p)) - (1 << seed) + code
            total = scratch[depth]
            book[entry] = _best_centroid(book[entry], mine, total, slopes[p])
            above = scratch[depth - 1] if depth > 0 else gathered[code >> 1]
            if len(mine):
                _add(above, np.float32(1.0), total)
                total[:] = 0.0


@compiled
def _best_centroid(centroid, members, total, slopes):
    """The best value of one centroid; slopes follow. `total` is the sum of its members' lines of G."""
    curvature, slope = 0.0, 0.0
    for i in members:
        curvature += total[i]
        slope += slopes[i]
    if curvature <= 0.0:
        return centroid
    new = np.float32(centroid + slope / curvature)
    _add(slopes, centroid - new, total)
    return new


@compiled
def _by_code(codes, size):
    """The columns in ascending order of their codes, and where each code's begin."""
    starts = np.zeros(size + 1, np.int64)
    for code in codes:
        starts[code + 1] += 1
    starts = np.cumsum(starts)
    members, filled = np.empty(len(codes), np.int64), starts[:-1].copy()
    for i in range(len(codes)):
        members[filled[codes[i]]] = i
        filled[codes[i]] += 1
    return members, starts


@compiled
def _normal_equations(gathered, codes, shift, slopes, precisions):
    """Of the least-squares problem in the steps of the finest exact codebook: matrix, right sides of all precisions, members."""
    leaves, k = gathered.shape
    normal, right, counts = np.zeros((leaves, leaves)), np.zeros((precisions, leaves)), np.zeros(leaves, np.int64)
    for i in range(k):
        leaf = codes[i] >> shift
        counts[leaf] += 1
        for p in range(precisions):
            right[p, leaf] += slopes[p, i]
    for leaf in range(leaves):
        if counts[leaf]:
            line, sums = gathered[leaf], normal[leaf]
            for i in range(k):
                sums[codes[i] >> shift] += line[i]
    return normal, right, counts


@compiled
def _halved(normal, counts):
    """The matrix and the members of one precision less: sums over siblings."""
    size = len(counts) // 2
    merged, members = np.empty((size, size)), np.empty(size, np.int64)
    for a in range(size):
        members[a] = counts[2 * a] + counts[2 * a + 1]
        for b in range(size):
            merged[a, b] = (normal[2 * a, 2 * b] + normal[2 * a, 2 * b + 1]) + (
                normal[2 * a + 1, 2 * b] + normal[2 * a + 1, 2 * b + 1]
            )
    return merged, members


@compiled
def _merged(values, size):
    """Sums over runs of leaves: `size` of them."""
    run = len(values) // size
    result = np.zeros(size)
    for i in range(len(values)):
        result[i // run] += values[i]
    return result


@compiled
def _solve(matrix, right, counts):
    """The solution over codes that have members, 0 for the others, by Cholesky's factorisation.

    A pivot that rounding has eaten takes the code out: its centroid stays.
    """
    size = len(right)
    used = np.empty(size, np.int64)
    m = 0
    for c in range(size):
        if counts[c] > 0:
            used[m] = c
            m += 1
    factor, solution = np.zeros((m, m)), np.zeros(size)
    forward = np.zeros(m)
    for a in range(m):
        for b in range(a + 1):
            total = matrix[used[a], used[b]]
            line_a, line_b = factor[a], factor[b]
            for c in range(b):
                total -= line_a[c] * line_b[c]
            if a != b:
                factor[a, b] = total / factor[b, b] if factor[b, b] > 0.0 else 0.0
            else:
                factor[a, a] = math.sqrt(total) if total > 1e-9 * matrix[used[a], used[a]] else 0.0
        total = right[used[a]]
        for c in range(a):
            total -= factor[a, c] * forward[c]
        forward[a] = total / factor[a, a] if factor[a, a] > 0.0 else 0.0
    for a in range(m - 1, -1, -1):
        total = forward[a]
        for b in range(a + 1, m):
            total -= factor[b, a] * solution[used[b]]
        solution[used[a]] = total / factor[a, a] if factor[a, a] > 0.0 else 0.0
    return solution
