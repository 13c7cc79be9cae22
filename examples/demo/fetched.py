"""Whether the data is what was fetched: a file may have been cut short or changed since."""

import base64
import csv
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).parent.parent / "source-requirements.txt"


def check_fetched(data: Path, sources: Path = SOURCES) -> None:
    """Compares every file with its SHA-256: pip's record of what it unpacked, and those pinned for what it only fetched.

    Raises:
      ValueError: a file is missing, cut short or changed; the message says what to do.

    Time: the hashes of 130 MB, less than a second.
    """
    for path, digest in (*_unpacked(data), *_archives(data, sources)):
        if not path.is_file():
            raise ValueError(f"{path} is missing: remove {data}, and `make demo` fetches it again")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").digest() != digest:
                raise ValueError(f"{path} is not what was fetched: remove {data}, and `make demo` fetches it again")


def _unpacked(data: Path) -> Iterator[tuple[Path, bytes]]:
    """What the packages' records list: base64 without its padding."""
    for record in sorted(data.glob("*.dist-info/RECORD")):
        with record.open(encoding="utf-8", newline="") as lines:
            for name, digest, _ in csv.reader(lines):
                algorithm, _, value = digest.partition("=")
                if algorithm == "sha256" and not name.startswith(".."):  # commands, which `pip --target` puts elsewhere
                    yield data / name, base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))


def _archives(data: Path, sources: Path) -> Iterator[tuple[Path, bytes]]:
    """What requirements pin, in hexadecimal."""
    for name, version, digest in re.findall(
        r"^(\S+)==(\S+) --hash=sha256:(\w+)", sources.read_text(encoding="utf-8"), re.MULTILINE
    ):
        yield data / name / f"{name}-{version}.tar.gz", bytes.fromhex(digest)
