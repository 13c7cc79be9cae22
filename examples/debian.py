"""`apt-cache dumpavail > available; python -m examples.debian available`: Debian's packages as a labelled graph.

Nodes are packages, edges lead from a package to each that it depends on, labels are sections ("games", "libdevel"), features are
the words of the one-line description. A few hundred thousand edges, and one node that a third of all others point to: libc6.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.word_vectors import WORD

_FIELDS = {"package", "depends", "pre-depends", "section", "description"}


class DebianGraph(NamedTuple):
    """Packages are numbered in the order of the dump, sections in that of the alphabet."""

    names: list[str]
    sections: list[str]
    sources: np.ndarray  # int64 [edges]: the package
    targets: np.ndarray  # int64 [edges]: what it depends on
    features: np.ndarray  # float32 [nodes, width]
    labels: np.ndarray  # int64 [nodes]; -1 without a section
    num_unknown: int  # dependencies on packages that the dump does not have: virtual ones, mostly

    @property
    def num_nodes(self) -> int:
        return len(self.names)


def debian_graph(lines: Iterable[str], *, width: int = 64) -> DebianGraph:
    """Reads a dump, a stanza at a time. A package listed twice, in two versions say, counts as it is listed first.

    A dependency with alternatives is an edge to each. Edges are distinct, ascending, and none leads from a package to itself.
    """
    names: dict[str, int] = {}
    depends, sections, features = [], [], []
    for stanza in stanzas(lines):
        name = stanza.get("package", "")
        if not name or name in names:
            continue
        names[name] = len(names)
        depends.append([*dependencies(stanza.get("pre-depends", "")), *dependencies(stanza.get("depends", ""))])
        sections.append(stanza.get("section", ""))
        features.append(hashed_words(stanza.get("description", ""), width=width))
    known = sorted(set(sections) - {""})
    ends = [(node, names.get(name, -1)) for node, wanted in enumerate(depends) for name in dict.fromkeys(wanted)]
    pairs = sorted({(source, target) for source, target in ends if target not in (-1, source)})
    sources, targets = np.array(pairs, np.int64).reshape(-1, 2).T
    return DebianGraph(
        names=list(names),
        sections=known,
        sources=np.ascontiguousarray(sources),
        targets=np.ascontiguousarray(targets),
        features=np.array(features, np.float32).reshape(-1, width),
        labels=np.array([{name: i for i, name in enumerate(known)}.get(section, -1) for section in sections], np.int64),
        num_unknown=sum(target == -1 for _, target in ends),
    )


def stanzas(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """The fields of each package that matter here (deb-control(5)): names in lower case, continued lines joined."""
    stanza: dict[str, str] = {}
    current = ""
    for line in lines:
        if not line.strip():
            if stanza:
                yield stanza
            stanza, current = {}, ""
        elif line[0] in " \t":
            if current in _FIELDS:
                stanza[current] += " " + line.strip()
        else:
            field, _, value = line.partition(":")
            current = field.lower()
            if current in _FIELDS:
                stanza[current] = value.strip()
    if stanza:
        yield stanza


def dependencies(field: str) -> list[str]:
    """The packages of `a (>= 1), b:any | c [amd64]`, alternatives included: a, b, c."""
    alternatives = (part for clause in field.split(",") for part in clause.split("|"))
    return [name for part in alternatives if (name := part.strip().split(" ")[0].split("(")[0].partition(":")[0])]


def hashed_words(text: str, *, width: int) -> np.ndarray:
    """float32 [width] of length 1, or 0 for no words: each word adds 1 or -1 at a place, both chosen by its hash."""
    vector = np.zeros(width, np.float32)
    for word in WORD.findall(text.lower()):
        number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        vector[(number >> 1) % width] += 1 - 2 * float(number & 1)
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


def main(arguments: list[str] | None = None) -> int:
    """Prints the sizes, the commonest sections and the packages that most others depend on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump", type=Path, help="what `apt-cache dumpavail` printed")
    options = parser.parse_args(arguments)
    try:
        with options.dump.open(encoding="utf-8", errors="replace") as lines:
            graph = debian_graph(lines)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not graph.num_nodes:
        print(f"error: {options.dump} has no packages: it should be what `apt-cache dumpavail` prints", file=sys.stderr)
        return 2
    print(f"{graph.num_nodes:,} packages, {len(graph.sources):,} dependencies, {len(graph.sections)} sections")
    print(f"{graph.num_unknown:,} dependencies on packages that are not there")
    counts = np.bincount(graph.labels[graph.labels >= 0], minlength=1)
    for section in np.argsort(-counts, kind="stable")[: min(3, len(graph.sections))]:
        print(f"section {graph.sections[section]}: {counts[section]:,} packages")
    dependants = np.bincount(graph.targets, minlength=graph.num_nodes)
    for node in np.argsort(-dependants, kind="stable")[:3]:
        print(f"{graph.names[node]}: {dependants[node]:,} packages depend on it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
