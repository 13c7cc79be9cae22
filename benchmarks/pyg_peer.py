"""PyG's samplers as calls: another interpreter samples and answers on a pipe, so that both sides take turns."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.llamacpp_build import PEERS, PeerError
from benchmarks.pyg_build import built_python
from ginex_jax.graph import CSCGraph

_SCRIPT = Path(__file__).with_name("pyg_sampler.py")


class PygSamplers:
    """Samplers of a process that `pyg_samplers` started."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def sample(self, sampler: str) -> tuple[int, int]:
        """Samples all batches once with "sample_adj" or "NeighborLoader". Returns the edges and the nodes of all of them.

        Raises:
          PeerError: the process has ended; what it said is on the standard error output.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"{sampler}\n")
        self._process.stdin.flush()
        edges, nodes = self.answer().split()
        return int(edges), int(nodes)

    def answer(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise PeerError("PyG's process ended: the reason is above")
        return line.strip()


@contextmanager
def pyg_samplers(
    folder: Path, graph: CSCGraph, seeds: np.ndarray, fanouts: Sequence[int], peers: Path = PEERS
) -> Iterator[PygSamplers]:
    """PyG with the same graph and the same batches `seeds` [batches, seeds], which go through `folder`.

    Raises:
      PeerError: PyG is not built.
    """
    python = built_python(peers)
    for name, array in (("indptr", graph.indptr), ("indices", graph.indices), ("seeds", seeds)):
        np.save(folder / f"{name}.npy", array)
    command = [str(python), str(_SCRIPT), str(folder), *map(str, fanouts)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            samplers = PygSamplers(process)
            samplers.answer()
            yield samplers
        finally:
            process.kill()
