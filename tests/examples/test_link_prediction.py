import re
from pathlib import Path

import numpy as np
import pytest

from examples import link_prediction
from tests.ginex_jax.small_datasets import write_dataset
from tests.ginex_jax.small_links import NUM_NODES, communities, features


def test_links_of_communities_are_learnt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = communities()
    arrays = {
        "indptr": graph.indptr,
        "indices": graph.indices,
        "features": features().read_rows(np.arange(NUM_NODES)),
    }
    write_dataset(tmp_path / "dataset", arrays)
    link_prediction.main([str(tmp_path / "dataset"), "--epochs", "6", "--batch-size", "128", "--hidden", "16"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["valid", "test"]
    for line in lines:
        found = re.fullmatch(r"\w+: (\d+) edges, MRR (0\.\d+) among 51, AUC (0\.\d+)", line)
        assert found is not None
        assert float(found.group(3)) > 0.85
        assert float(found.group(2)) > 2 * np.mean(1 / np.arange(1, 52))  # twice as good as chance
