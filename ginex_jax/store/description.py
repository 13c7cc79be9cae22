"""What a dataset holds, for people and programs."""

from typing import Any

from ginex_jax.store.dataset import Dataset


def describe(dataset: Dataset) -> dict[str, Any]:
    """Counts, arrays, sizes in bytes and provenance, ready for JSON. Reads nothing but the manifest."""
    manifest = dataset.manifest
    arrays = {
        name: {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "bytes": entry.layout.nbytes,
            "shards": len(entry.shards),
        }
        for name, entry in manifest.arrays.items()
    }
    return {
        "path": str(dataset.path),
        "num_nodes": manifest.num_nodes,
        "num_edges": manifest.num_edges,
        "bytes": sum(array["bytes"] for array in arrays.values()),
        "node_order": manifest.node_order,
        "has_string_ids": manifest.has_string_ids,
        "arrays": arrays,
        "provenance": dict(manifest.provenance),
    }
