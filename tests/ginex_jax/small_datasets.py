"""A small dataset on disk, with everything a dataset can have, and the arrays it was made from."""

from pathlib import Path
from typing import Any

import numpy as np

from ginex_jax.ingest.assembly import Assembly
from ginex_jax.store.publishing import published


def small_arrays(
    seed: int = 0, num_nodes: int = 500, num_edges: int = 4000, *, weighted: bool = True
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    targets, sources = rng.integers(0, num_nodes, (2, num_edges))
    indptr = np.zeros(num_nodes + 1, np.int64)
    np.cumsum(np.bincount(targets, minlength=num_nodes), out=indptr[1:])
    ids = rng.permutation(num_nodes)
    arrays = {
        "indptr": indptr,
        "indices": sources[np.lexsort((sources, targets))].astype(np.int32),
        "features": rng.standard_normal((num_nodes, 100)).astype(np.float32),
        "labels": rng.integers(-1, 5, num_nodes),
        "train": np.sort(ids[:100]),
        "valid": np.sort(ids[100:150]),
        "test": np.sort(ids[150:220]),
    }
    if weighted:
        arrays["weights"] = rng.random(num_edges, np.float32)
    return arrays


def write_dataset(out: Path, arrays: dict[str, Any]) -> None:
    with published(out) as folder, Assembly(folder, lambda phase, done, total: None) as assembly:
        for name, array in arrays.items():
            assembly.write(name, array.shape, array.dtype, [array])
        assembly.finish(num_nodes=len(arrays["indptr"]) - 1, provenance={"source": "test"})
