"""Cached rows, and rows just read, by the batch of their next use; the furthest leaves first. Importing this module imports numba.

Every next use has a bucket: a stack of slots, and a count of the places in the current batch whose rows are in no slot yet ("fresh").
Buckets lie in three blocks. Two hold batches, `span` each: batch b has bucket b mod (2 * span), so that of the batches known at any
time, at most `span`, those of the block that does not hold the current batch come later. The third holds rows without a known next
use, by grade. A bitmap with a summary of 64 bits to one above it, and so on, finds the last bucket of a block that is not empty.

Stacks of slots are chains of chunks of one pool, so that slots that leave one after another are read from memory at the same time, which
a list through the slots would not allow.
"""

import inspect
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, UInt64
from numba import types
from numba.extending import intrinsic

from ginex_jax.compilation import PREFETCHED, compiled_bare, inlined_bare, prefetch

GRADES = 256  # of rows without a known next use
NOTHING = -1
_CHUNK = 32  # entries; the first is the chunk below
# Entries of `counters`: slots ever used, slots in use, heights of the two stacks, stale entries.
_TOP, _SIZE, _FREE_SLOTS, _FREE_CHUNKS, _STALE = range(5)
_1, _0 = np.uint64(1), np.uint64(0)


class NextUseQueue(NamedTuple):
    """The state of a cache.

    Attributes:
      slot_of: the slot of every node, or -1.
      ids: the node in every slot, or -1.
      bucket_of: the bucket of every slot, or -1. Empty unless slots are movable: then an entry of a slot that has another bucket
        is stale.
      pool: chunks.
      heads: of every bucket the place of its top entry in the pool, or -1.
      fresh: of every bucket the number of fresh places; 0 between batches.
      bits: whether a bucket has any of them, for each block.
      levels: where the levels of the bitmap start, the finest first.
      free_slots: a stack of those that were used before.
      free_chunks: a stack.
      counters: see `_TOP`.
    """

    slot_of: Int32[np.ndarray, " nodes"]
    ids: Int32[np.ndarray, " slots"]
    bucket_of: Int32[np.ndarray, " movable_slots"]
    pool: Int32[np.ndarray, " entries"]
    heads: Int32[np.ndarray, " buckets"]
    fresh: Int32[np.ndarray, " buckets"]
    bits: UInt64[np.ndarray, "3 words"]
    levels: Int64[np.ndarray, " levels"]
    free_slots: Int32[np.ndarray, " slots"]
    free_chunks: Int32[np.ndarray, " chunks"]
    counters: Int64[np.ndarray, "5"]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self)


def new_queue(slot_of: Int32[np.ndarray, " nodes"], capacity: int, span: int, *, movable: bool = False) -> NextUseQueue:
    """An empty cache.

    Args:
      slot_of: -1 everywhere.
      movable: whether slots may be moved to another bucket.

    Memory 13 bytes a slot, movable 21, and up to 150 a batch of the span besides.
    """
    starts, size = [0], max(span, GRADES)
    while size > 1:
        size = -(-size // 64)
        starts.append(starts[-1] + size)
    entries = 2 * capacity if movable else capacity
    num_chunks = -(-entries // (_CHUNK - 1)) + min(entries, 2 * span + GRADES)
    return NextUseQueue(
        slot_of=slot_of,
        ids=np.full(capacity, NOTHING, np.int32),
        bucket_of=np.full(capacity if movable else 0, NOTHING, np.int32),
        pool=np.empty(num_chunks * _CHUNK, np.int32),
        heads=np.full(2 * span + GRADES, NOTHING, np.int32),
        fresh=np.zeros(2 * span + GRADES, np.int32),
        bits=np.zeros((3, starts[-1]), np.uint64),
        levels=np.array(starts[:-1], np.int64),
        free_slots=np.empty(capacity, np.int32),
        free_chunks=np.arange(num_chunks, dtype=np.int32),
        counters=np.array([0, 0, 0, num_chunks, 0], np.int64),
    )


def _highest_bit(typing_context: Any, word: Any) -> Any:
    """The number of the highest bit that is set; the word should not be 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zeros = builder.ctlz(arguments[0], context.get_constant(types.boolean, False))
        return builder.sub(context.get_constant(types.uint64, 63), zeros)

    return types.int64(types.uint64), generate


_highest = intrinsic(inspect.unwrap(_highest_bit))


@inlined_bare
def grade(priority):
    """A number below GRADES that rises with the priority, an int in [0, 2**32): exact to 16, to one part in 8 beyond."""
    if priority < 16:
        return np.int64(priority)
    octave = _highest(np.uint64(priority)) - 3
    return octave * 8 + (np.int64(priority) >> octave)


@inlined_bare
def unused_bucket(queue, priority):
    """That of rows without a known next use: those of low grades come last and leave first."""
    return len(queue.heads) - 1 - grade(priority)


@inlined_bare
def _place(queue, bucket):
    """Block, and number within it."""
    span = (len(queue.heads) - GRADES) // 2
    block = 0 if bucket < span else 1 if bucket < 2 * span else 2
    return block, bucket - block * span


@inlined_bare
def _mark(queue, bucket):
    block, number = _place(queue, bucket)
    for level in range(len(queue.levels)):
        word = queue.levels[level] + (number >> 6)
        before = queue.bits[block, word]
        queue.bits[block, word] = before | (_1 << np.uint64(number & 63))
        if before != _0:
            break
        number >>= 6


@inlined_bare
def _unmark_if_empty(queue, bucket):
    if queue.heads[bucket] != NOTHING or queue.fresh[bucket]:
        return
    block, number = _place(queue, bucket)
    for level in range(len(queue.levels)):
        word = queue.levels[level] + (number >> 6)
        queue.bits[block, word] &= ~(_1 << np.uint64(number & 63))
        if queue.bits[block, word] != _0:
            break
        number >>= 6


@inlined_bare
def _last_of(queue, block):
    top = len(queue.levels) - 1
    if queue.bits[block, queue.levels[top]] == _0:
        return NOTHING
    number = 0
    for down in range(top + 1):
        number = number * 64 + _highest(queue.bits[block, queue.levels[top - down] + number])
    return number


@inlined_bare
def _furthest(queue, current):
    """The bucket used last, for the bucket of the current batch; there should be one that is not empty."""
    span = (len(queue.heads) - GRADES) // 2
    now = 0 if current < span else 1
    number = _last_of(queue, 2)
    if number != NOTHING:
        return 2 * span + number
    number = _last_of(queue, 1 - now)
    if number != NOTHING:
        return (1 - now) * span + number
    return now * span + _last_of(queue, now)


@inlined_bare
def _push(queue, bucket, slot):
    top = queue.heads[bucket]
    if top == NOTHING or top % _CHUNK == _CHUNK - 1:
        queue.counters[_FREE_CHUNKS] -= 1
        chunk = queue.free_chunks[queue.counters[_FREE_CHUNKS]]
        queue.pool[chunk * _CHUNK] = top
        if top == NOTHING:
            _mark(queue, bucket)
        top = chunk * _CHUNK
    queue.pool[top + 1] = slot
    queue.heads[bucket] = top + 1


@inlined_bare
def _pop(queue, bucket):
    top = queue.heads[bucket]
    slot = queue.pool[top]
    if top % _CHUNK == 1:
        queue.free_chunks[queue.counters[_FREE_CHUNKS]] = top // _CHUNK
        queue.counters[_FREE_CHUNKS] += 1
        top = queue.pool[top - 1]
        queue.heads[bucket] = top
        if top == NOTHING:
            _unmark_if_empty(queue, bucket)
    else:
        queue.heads[bucket] = top - 1
    return slot


@inlined_bare
def _empty(queue, bucket):
    top = queue.heads[bucket]
    while top != NOTHING:
        queue.free_chunks[queue.counters[_FREE_CHUNKS]] = top // _CHUNK
        queue.counters[_FREE_CHUNKS] += 1
        top = queue.pool[top // _CHUNK * _CHUNK]
    queue.heads[bucket] = NOTHING
    _unmark_if_empty(queue, bucket)


@compiled_bare
def rebuild(queue):
    """Files every slot, of movable ones, in its bucket anew, between batches: no entry is stale then. O(slots + buckets)."""
    queue.counters[_STALE] = 0
    queue.heads[:] = NOTHING
    queue.bits[:] = _0
    queue.counters[_FREE_CHUNKS] = len(queue.free_chunks)
    for chunk in range(len(queue.free_chunks)):
        queue.free_chunks[chunk] = chunk
    for slot in range(queue.counters[_TOP]):
        if queue.bucket_of[slot] != NOTHING:
            _push(queue, queue.bucket_of[slot], slot)


@inlined_bare
def file_slot(queue, bucket, slot):
    """Puts a slot into a bucket."""
    if len(queue.bucket_of):
        queue.bucket_of[slot] = bucket
    _push(queue, bucket, slot)


@inlined_bare
def move_slot(queue, bucket, slot):
    """Puts a movable slot into another bucket; its entry in the old one is passed over when its turn comes."""
    queue.counters[_STALE] += 1
    file_slot(queue, bucket, slot)


@inlined_bare
def make_room_to_move(queue, count):
    """To be called before that many slots are moved. O(1) a move in the long run."""
    num_slots = len(queue.ids)
    if queue.counters[_STALE] + min(count, num_slots) > num_slots:
        rebuild(queue)


@inlined_bare
def _fill_slot(queue, bucket, node):
    """Keeps a node in a free slot, of which there should be one."""
    if queue.counters[_FREE_SLOTS] > 0:
        queue.counters[_FREE_SLOTS] -= 1
        slot = queue.free_slots[queue.counters[_FREE_SLOTS]]
    else:
        slot = queue.counters[_TOP]
        queue.counters[_TOP] += 1
    queue.counters[_SIZE] += 1
    queue.ids[slot] = node
    queue.slot_of[node] = slot
    file_slot(queue, bucket, slot)
    return slot


@inlined_bare
def _prefetch_below(queue, top):
    """Of entries of the same chunk, evicted soon: the node, and of nearer ones, whose node has come, its entry in `slot_of`."""
    place = top % _CHUNK
    if place > 16:
        prefetch(queue.ids, np.intp(queue.pool[top - 16]))
    if place > 8:
        prefetch(queue.slot_of, np.intp(queue.ids[queue.pool[top - 8]]))


@inlined_bare
def _evict_from(queue, bucket):
    _prefetch_below(queue, queue.heads[bucket])
    slot = _pop(queue, bucket)
    if len(queue.bucket_of):
        if queue.bucket_of[slot] != bucket:
            queue.counters[_STALE] -= 1
            return
        queue.bucket_of[slot] = NOTHING
    queue.slot_of[queue.ids[slot]] = NOTHING
    queue.ids[slot] = NOTHING
    queue.free_slots[queue.counters[_FREE_SLOTS]] = slot
    queue.counters[_FREE_SLOTS] += 1
    queue.counters[_SIZE] -= 1


@compiled_bare
def fill(queue, ids, next_uses, priorities):
    """The first contents of an empty cache; arguments as those of `take_step`."""
    for i in range(len(ids)):
        if i + PREFETCHED < len(ids):
            prefetch(queue.slot_of, np.intp(ids[i + PREFETCHED]))
        bucket = next_uses[i]
        if bucket == NOTHING:
            bucket = unused_bucket(queue, priorities[ids[i]] if len(priorities) else 0)
        _fill_slot(queue, bucket, ids[i])


@compiled_bare
def take_step(queue, current, ids, next_uses, priorities, keep_unused, hits):
    """One batch: finds the hits, and keeps those of the cached and the fresh rows that are used soonest. Returns the number of misses.

    All rows used now leave their bucket, which is `current`, for that of their next use; then, while there are more rows than slots, the
    furthest goes. Of equals the fresh go first, which saves writes; of those the last in the batch.

    Args:
      next_uses: the bucket of every id's next use, or -1; receives the slots to write.
      priorities: of every node, for rows without a next use; all alike if it is empty.
      keep_unused: whether fresh rows without a next use may be kept.
      hits: receives the slots of hits.
    """
    misses, fresh = 0, 0
    for i in range(len(ids)):  # a loop of its own: reads that wait for memory wait together
        if i + PREFETCHED < len(ids):
            prefetch(queue.slot_of, np.intp(ids[i + PREFETCHED]))
        hits[i] = queue.slot_of[ids[i]]
    _empty(queue, current)
    for i in range(len(ids)):
        if len(priorities) and i + PREFETCHED < len(ids):
            prefetch(priorities, np.intp(ids[i + PREFETCHED]))
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
        if queue.fresh[bucket] == 0:
            _mark(queue, bucket)
        queue.fresh[bucket] += 1
        fresh += 1
    if fresh:
        fresh -= _make_room(queue, current, fresh)
        _keep_fresh(queue, ids, next_uses)
    return misses


@inlined_bare
def _make_room(queue, current, fresh):
    """Evicts, and takes fresh places off their buckets, until slots suffice for the places that are left. Returns how many were taken."""
    taken, excess = 0, queue.counters[_SIZE] + fresh - len(queue.ids)
    while excess > 0:
        bucket = _furthest(queue, current)
        if queue.fresh[bucket]:
            count = min(np.int64(queue.fresh[bucket]), excess)
            queue.fresh[bucket] -= count
            taken += count
            _unmark_if_empty(queue, bucket)
        while queue.heads[bucket] != NOTHING and queue.counters[_SIZE] + fresh - taken > len(queue.ids):
            _evict_from(queue, bucket)
        excess = queue.counters[_SIZE] + fresh - taken - len(queue.ids)
    return taken


@inlined_bare
def _keep_fresh(queue, ids, next_uses):
    """Gives slots to the fresh places that their buckets count, the first ones in the batch."""
    for i in range(len(ids)):
        if i + PREFETCHED < len(ids) and next_uses[i + PREFETCHED] != NOTHING:
            prefetch(queue.slot_of, np.intp(ids[i + PREFETCHED]))
        bucket = next_uses[i]
        if bucket == NOTHING:
            continue
        next_uses[i] = NOTHING
        if queue.fresh[bucket]:
            queue.fresh[bucket] -= 1
            next_uses[i] = _fill_slot(queue, bucket, ids[i])
