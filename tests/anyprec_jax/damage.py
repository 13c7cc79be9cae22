"""Artefacts that a disk has damaged."""

from pathlib import Path


def damage_arrays(folder: Path) -> None:
    """Flips bits throughout the largest file of an artefact's arrays.

    One bit could be harmless: the database of arrays keeps parts of its index that nothing refers to any more, and where they lie
    differs from run to run.
    """
    largest = max(
        (file for file in (folder / "checkpoint").rglob("*") if file.is_file()), key=lambda f: f.stat().st_size
    )
    content = bytearray(largest.read_bytes())
    for position in range(len(content) // 2 % 499, len(content), 499):
        content[position] ^= 1
    largest.write_bytes(bytes(content))
