"""Cached rows and fresh ones by the batch of their next use, the furthest first. Importing this module imports numba.

Every next use has a bucket: a list of slots, and one of the places in the current batch whose rows are not in a slot yet ("fresh"). Buckets
lie in three blocks. Two hold batches, `span` each: number b has bucket b mod (2 * span), so that of the batches known at any
time, at most `span`, those of the block that does not hold the current batch come later. The third holds rows without a known next
use, by grade. A bitmap with a summary of 64 bits to one above it, and so on, finds the last bucket of a block that is not empty.
"""

import inspect
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, UInt64
from numba import types
from numba.extending import intrinsic

from ginex_jax.random_numbers import compiled, inlined

GRADES = 256  # of rows without a known next use
NOTHING = -1
_FREE, _TOP, _SIZE = range(3)  # entries of `counters`: first free slot below the top, slots ever used, slots in use
_63, _1, _0 = np.uint64(63), np.uint64(1), np.uint64(0)


class NextUseQueue(NamedTuple):
    """The state of a cache.

    Attributes:
      slot_of: the slot of every node, or -1.
      ids: the node in every slot.
      following: the next slot of a slot's list, or of the free ones, or -1.
      preceding: the slot before it; kept up in the third block only, where slots leave from the middle.
      heads: of every bucket the first slot, and the first fresh place.
      bits: whether a bucket has any of them, for each block.
      levels: where the levels of the bitmap start, the finest first.
      counters: see `_FREE`.
    """

    slot_of: Int32[np.ndarray, " nodes"]
    ids: Int32[np.ndarray, " slots"]
    following: Int32[np.ndarray, " slots"]
    preceding: Int32[np.ndarray, " slots"]
    heads: Int32[np.ndarray, "2 buckets"]
    bits: UInt64[np.ndarray, "3 words"]
    levels: Int64[np.ndarray, " levels"]
    counters: Int64[np.ndarray, "3"]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self)


def new_queue(slot_of: Int32[np.ndarray, " nodes"], capacity: int, span: int) -> NextUseQueue:
    """An empty cache. `slot_of` should be -1 everywhere; memory 12 bytes a slot and 17 a batch of the span besides."""
    starts, size = [0], max(span, GRADES)
    while size > 1:
        size = -(-size // 64)
        starts.append(starts[-1] + size)
    return NextUseQueue(
        slot_of=slot_of,
        ids=np.empty(capacity, np.int32),
        following=np.empty(capacity, np.int32),
        preceding=np.empty(capacity, np.int32),
        heads=np.full((2, 2 * span + GRADES), NOTHING, np.int32),
        bits=np.zeros((3, starts[-1]), np.uint64),
        levels=np.array(starts[:-1], np.int64),
        counters=np.array([NOTHING, 0, 0], np.int64),
    )


def _highest_bit(typing_context: Any, word: Any) -> Any:
    """The number of the highest bit that is set; the word should not be 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zeros = builder.ctlz(arguments[0], context.get_constant(types.boolean, False))
        return builder.sub(context.get_constant(types.uint64, 63), zeros)

    return types.int64(types.uint64), generate


_highest = intrinsic(inspect.unwrap(_highest_bit))


@inlined
def grade(priority):
    """A number below GRADES that rises with the priority, an int in [0, 2**32): exact to 16, to one part in 8 beyond."""
    if priority < 16:
        return priority
    octave = _highest(np.uint64(priority)) - 3
    return octave * 8 + (priority >> octave)


@inlined
def unused_bucket(queue, priority):
    """That of rows without a known next use: those of low grades come last and leave first."""
    return queue.heads.shape[1] - 1 - grade(priority)


@inlined
def is_unused(queue, bucket):
    return bucket >= queue.heads.shape[1] - GRADES


@inlined
def _place(queue, bucket):
    """Block, and number within it."""
    span = (queue.heads.shape[1] - GRADES) // 2
    block = 0 if bucket < span else 1 if bucket < 2 * span else 2
    return block, bucket - block * span


@inlined
def _mark(queue, bucket):
    block, number = _place(queue, bucket)
    for level in range(len(queue.levels)):
        word = queue.levels[level] + (number >> 6)
        before = queue.bits[block, word]
        queue.bits[block, word] = before | (_1 << np.uint64(number & 63))
        if before != _0:
            break
        number >>= 6


@inlined
def _unmark(queue, bucket):
    block, number = _place(queue, bucket)
    for level in range(len(queue.levels)):
        word = queue.levels[level] + (number >> 6)
        queue.bits[block, word] &= ~(_1 << np.uint64(number & 63))
        if queue.bits[block, word] != _0:
            break
        number >>= 6


@inlined
def _unmark_if_empty(queue, bucket):
    if queue.heads[0, bucket] == NOTHING and queue.heads[1, bucket] == NOTHING:
        _unmark(queue, bucket)


@inlined
def _last_of(queue, block):
    top = len(queue.levels) - 1
    if queue.bits[block, queue.levels[top]] == _0:
        return NOTHING
    number = 0
    for down in range(top + 1):
        number = number * 64 + _highest(queue.bits[block, queue.levels[top - down] + number])
    return number


@inlined
def _furthest(queue, current):
    """The bucket used last, for the bucket of the current batch; there should be one that is not empty."""
    span = (queue.heads.shape[1] - GRADES) // 2
    now = 0 if current < span else 1
    number = _last_of(queue, 2)
    if number != NOTHING:
        return 2 * span + number
    number = _last_of(queue, 1 - now)
    if number != NOTHING:
        return (1 - now) * span + number
    return now * span + _last_of(queue, now)


@inlined
def file_slot(queue, bucket, slot):
    """Puts a slot, which is in no list, first into the list of a bucket."""
    head = queue.heads[0, bucket]
    queue.following[slot] = head
    queue.heads[0, bucket] = slot
    if is_unused(queue, bucket):
        queue.preceding[slot] = NOTHING
        if head != NOTHING:
            queue.preceding[head] = slot
    if head == NOTHING:
        _mark(queue, bucket)


@inlined
def _first_slot_leaves(queue, bucket):
    slot = queue.heads[0, bucket]
    after = queue.following[slot]
    queue.heads[0, bucket] = after
    if after == NOTHING:
        _unmark_if_empty(queue, bucket)
    elif is_unused(queue, bucket):
        queue.preceding[after] = NOTHING
    return slot


@inlined
def unfile_unused(queue, bucket, slot):
    """Takes a slot out of its list, whose bucket is that of a priority."""
    before, after = queue.preceding[slot], queue.following[slot]
    if before == NOTHING:
        _first_slot_leaves(queue, bucket)
        return
    queue.following[before] = after
    if after != NOTHING:
        queue.preceding[after] = before


@inlined
def fill_slot(queue, bucket, node):
    """Keeps a node in a free slot, of which there should be one."""
    slot = queue.counters[_FREE]
    if slot == NOTHING:
        slot = queue.counters[_TOP]
        queue.counters[_TOP] += 1
    else:
        queue.counters[_FREE] = queue.following[slot]
    queue.counters[_SIZE] += 1
    queue.ids[slot] = node
    queue.slot_of[node] = slot
    file_slot(queue, bucket, slot)
    return slot


@inlined
def _evict_first(queue, bucket):
    slot = _first_slot_leaves(queue, bucket)
    queue.slot_of[queue.ids[slot]] = NOTHING
    queue.ids[slot] = NOTHING
    queue.following[slot] = queue.counters[_FREE]
    queue.counters[_FREE] = slot
    queue.counters[_SIZE] -= 1


@compiled
def take_step(queue, current, ids, next_uses, priorities, keep_unused, links, hits):
    """One batch: finds the hits, and keeps those of the cached and the fresh rows that are used soonest. Returns the number of misses.

    All rows used now whose bucket is `current` leave it, so that every row has the bucket of its next use; then, while there are
    more rows than slots, the furthest goes. Of equals the fresh go first, which saves writes.

    Args:
      next_uses: the bucket of every id's next use, or -1; receives the slots to write.
      priorities: of every node, for rows without a next use; all alike if it is empty.
      keep_unused: whether fresh rows without a next use may be kept.
      links: scratch, as long as the batch or longer.
      hits: receives the slots of hits.
    """
    misses, fresh = 0, 0
    queue.heads[0, current] = NOTHING  # all in its list are hits, and filed again below
    _unmark(queue, current)
    for i in range(len(ids)):  # a loop of its own: reads that wait for memory wait together
        hits[i] = queue.slot_of[ids[i]]
    for i in range(len(ids)):
        bucket = next_uses[i]
        unused = bucket == NOTHING
        if unused:
            bucket = unused_bucket(queue, priorities[ids[i]] if len(priorities) else 0)
        next_uses[i] = NOTHING
        if hits[i] != NOTHING:
            file_slot(queue, bucket, hits[i])
            continue
        misses += 1
        if unused and not keep_unused:
            continue
        next_uses[i] = bucket
        links[i] = queue.heads[1, bucket]
        queue.heads[1, bucket] = i
        if links[i] == NOTHING:
            _mark(queue, bucket)
        fresh += 1
    while queue.counters[_SIZE] + fresh > len(queue.ids):
        bucket = _furthest(queue, current)
        i = queue.heads[1, bucket]
        if i == NOTHING:
            _evict_first(queue, bucket)
            continue
        queue.heads[1, bucket] = links[i]
        next_uses[i] = NOTHING
        fresh -= 1
        _unmark_if_empty(queue, bucket)
    if fresh:
        for i in range(len(ids)):
            bucket = next_uses[i]
            if bucket != NOTHING:
                queue.heads[1, bucket] = NOTHING
                next_uses[i] = fill_slot(queue, bucket, ids[i])
    return misses
