"""PyG's side of a benchmark: what it is built from, and the pipe to it, with a stand-in for PyG."""

import re
import sys

import numpy as np
import pytest

from benchmarks.llamacpp_build import PeerError
from benchmarks.pyg_build import SOURCES, built_python, stamp
from benchmarks.pyg_peer import pyg_samplers
from ginex_jax.graph import CSCGraph

GRAPH = CSCGraph(np.array([0, 2, 2, 5, 5]), np.array([1, 2, 0, 3, 3], np.int32))
STAND_IN = f"""#!{sys.executable}
import sys
import numpy as np
folder, *fanouts = sys.argv[2:]
indptr, indices, seeds = (np.load(f"{{folder}}/{{name}}.npy") for name in ("indptr", "indices", "seeds"))
print("ready", flush=True)
for line in sys.stdin:
    if line.strip() == "sample_adj":
        print(len(indices), seeds.size + sum(map(int, fanouts)), flush=True)
    else:
        sys.exit()
"""


@pytest.fixture
def peers(tmp_path):
    python = tmp_path / "pyg" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(STAND_IN, encoding="utf-8")
    python.chmod(0o755)
    (tmp_path / "pyg.stamp").write_text(stamp(), encoding="utf-8")
    return tmp_path


def test_sources_are_pinned_by_hash():
    lines = [line for line in SOURCES.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert lines
    assert all(re.fullmatch(r"\w+==[0-9.]+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)


def test_answers_on_a_pipe(tmp_path, peers):
    with pyg_samplers(tmp_path, GRAPH, np.array([[0, 2], [2, 0]]), (3, 4), peers) as samplers:
        for _ in range(2):
            assert samplers.sample("sample_adj") == (5, 4 + 7)


def test_a_process_that_ended(tmp_path, peers):
    with (
        pyg_samplers(tmp_path, GRAPH, np.array([[0]]), (3,), peers) as samplers,
        pytest.raises(PeerError, match="process ended"),
    ):
        samplers.sample("another")


def test_builds_of_other_pins_do_not_count(peers):
    assert built_python(peers) == peers / "pyg" / "bin" / "python"
    (peers / "pyg.stamp").write_text("other", encoding="utf-8")
    with pytest.raises(PeerError, match="make bench-peers"):
        built_python(peers)
