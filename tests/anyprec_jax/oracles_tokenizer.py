"""SentencePiece BPE as its authors describe it, in plain Python."""

import itertools
from collections.abc import Sequence


def sentencepiece_bpe(
    text: str, tokens: Sequence[str], scores: Sequence[float], *, add_space_prefix: bool
) -> list[int]:
    """Joins, from single characters on, the neighbours that form the best-scored token (the leftmost, of equals).

    What is no token when none can be joined any more is spelt as its UTF-8 bytes.
    """
    ids = {token: id for id, token in enumerate(tokens)}
    if text and add_space_prefix:
        text = " " + text
    symbols = list(text.replace(" ", "▁"))
    while True:
        joins = [(scores[ids[a + b]], -i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in ids]
        if not joins:
            break
        at = -max(joins)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    spelt = [[ids[s]] if s in ids else [ids[f"<0x{byte:02X}>"] for byte in s.encode()] for s in symbols]
    return [id for part in spelt for id in part]
