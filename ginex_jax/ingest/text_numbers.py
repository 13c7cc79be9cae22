"""Numbers written as text, a column at a time."""

from typing import Any

import numpy as np
from jaxtyping import Shaped

_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"
_SPECIAL = r"(?i)^[+-]?(nan|inf|infinity)$"
_WHOLE = r"^(0|-?[1-9][0-9]{0,17})$"


def parsed(texts: Any) -> Shaped[np.ndarray, " rows"]:
    """Text, a `pyarrow.Array`, as int64 where all of it is whole numbers; as float64 otherwise, NaN where it is missing or no number.

    Spaces around a number do not count. Time O(bytes).
    """
    import pyarrow as pa

    pc = compute()
    if not texts.null_count and not _has_hexadecimal(texts):
        try:
            return texts.cast(pa.int64()).to_numpy()
        except pa.ArrowInvalid:
            pass  # something among them is no whole number
    texts = pc.utf8_trim_whitespace(texts)
    is_number = pc.or_(pc.match_substring_regex(texts, _NUMBER), pc.match_substring_regex(texts, _SPECIAL))
    numbers = pc.if_else(is_number, texts, pa.scalar(None, texts.type))
    if not numbers.null_count:
        try:
            return numbers.cast(pa.int64()).to_numpy()
        except pa.ArrowInvalid:
            pass  # some have a fraction
    numbers = pc.replace_substring_regex(numbers, r"^\+", "")  # Arrow's parser knows no plus
    return numbers.cast(pa.float64()).to_numpy(zero_copy_only=False)


def is_plain_whole_number(texts: Any) -> Any:
    """Which text, as booleans of a `pyarrow.Array`, is a whole number in its one shortest form: so distinct texts are distinct numbers."""
    pc = compute()
    return pc.match_substring_regex(texts, _WHOLE)


def _has_hexadecimal(texts: Any) -> bool:
    """Arrow would read 0x10 as 16, in one block, and not next to a fraction, in another."""
    pc = compute()
    return any(pc.any(pc.match_substring(texts, letter), min_count=0).as_py() for letter in "xX")


def compute() -> Any:
    """`pyarrow.compute`, whose functions come to be when it is imported, unseen by type checkers."""
    import pyarrow.compute

    return pyarrow.compute
