"""Every family through every format that can hold it: names, shared and transposed tensors, experts."""

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("transformers", reason="the small models of every family are made by transformers")

from anyprec_jax.array import AnyPrecArray
from anyprec_jax.checkpoint import huggingface, orbax, upstream
from anyprec_jax.checkpoint.formats import open_source
from anyprec_jax.checkpoint.manifest import CODEBOOK_KIND, MatrixEntry
from anyprec_jax.checkpoint.source import Source, matrix_on_host, plain_source
from anyprec_jax.inspection import inspect
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.families import FAMILIES, LAYERS, config_from_huggingface, parameter_shapes, tensors
from anyprec_jax.models.fusion import LINEARS
from tests.anyprec_jax.parity_models import MODELS, random_model

BY_FAMILY = {model.family: name for name, model in reversed(MODELS.items())}
SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "num_kv_heads": 4, "head_dim": 16}


def config_of(family: str) -> ModelConfig:
    """A small model of rows that are multiples of 32."""
    document = random_model(BY_FAMILY[family]).config.to_dict()
    config = config_from_huggingface(json.loads(json.dumps(document, default=str)))
    rotary = None if config.rotary_dim is None else 8
    scale = None if config.query_scale is None else 0.3
    return dataclasses.replace(config, **SIZES, rotary_dim=rotary, rope_scaling=None, query_scale=scale)


def random_source(config: ModelConfig, *, quantized: bool) -> Source:
    """Weights that are a function of their names alone."""
    shapes = parameter_shapes(config)
    kinds = {str(w): CODEBOOK_KIND for w in (2, 3)}
    linears = [f"{LAYERS}{name}" for name in LINEARS if quantized and f"{LAYERS}{name}" in shapes]
    matrices = {n: MatrixEntry(k=shapes[n][-1], seed_precision=2, parent_precision=3, codebooks=kinds) for n in linears}

    def read(parameter: str, layer: int | None) -> Any:
        rng = np.random.default_rng(zlib.crc32(f"{parameter}/{layer}".encode()))
        *lead, n, k = (1, *(shapes[parameter] if layer is None else shapes[parameter][1:]))
        if parameter not in matrices:
            return rng.normal(size=(*lead, n, k)).astype(np.float16).astype(np.float32)[0]
        planes = rng.integers(0, 2**32, (*lead[1:], 3, n, k // 32), np.uint32)
        books = {w: np.sort(rng.normal(size=(*lead[1:], n, 2**w)), axis=-1).astype(np.float16) for w in (2, 3)}
        return matrix_on_host(planes, books, 2, 3, k)

    plain = {name: np.dtype(np.float32) for name in shapes if name not in matrices}
    return Source(
        format="memory", path=None, config=config, tokenizer=None, matrices=matrices, dtypes=plain,
        precisions=(2, 3) if quantized else (), read=read,
    )  # fmt: skip


def assert_same(got: Source, expected: Source) -> None:
    assert parameter_shapes(got.config) == parameter_shapes(expected.config)
    assert set(got.matrices) == set(expected.matrices)
    for parameter, layer, _ in tensors(expected.config):
        ours, theirs = got.read(parameter, layer), expected.read(parameter, layer)
        assert isinstance(ours, AnyPrecArray) == isinstance(theirs, AnyPrecArray)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"{parameter} {layer}")


# Slow but for those whose tensors lie differently: shared, transposed, of experts.
QUICK = ("phi3", "gpt2", "mixtral")


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_every_family_in_every_format(family: str, tmp_path: Path) -> None:
    config = config_of(family)
    source = random_source(config, quantized=True)
    orbax.write_folder(tmp_path / "artefact", source, provenance={})
    assert_same(open_source(tmp_path / "artefact"), source)

    plain = plain_source(source, precision=2, dtype=None)
    huggingface.write_folder(tmp_path / "huggingface", plain)
    assert_same(open_source(tmp_path / "huggingface"), plain)
    orbax.write_folder(tmp_path / "orbax", plain, provenance={}, narrow=False)
    assert_same(open_source(tmp_path / "orbax"), plain)

    folders = ["artefact", "huggingface", "orbax"]
    if FAMILIES[family].layout.transposed:  # GPT-2: upstream quantizes no Conv1D
        with pytest.raises(ValueError, match="lie transposed there"):
            upstream.write_folder(tmp_path / "upstream", source)
    else:
        upstream.write_folder(tmp_path / "upstream", source)
        assert_same(open_source(tmp_path / "upstream"), source)
        folders.append("upstream")
    for folder in folders:
        report = inspect(tmp_path / folder)
        assert report["family"] == family
        assert report["parameters"] == sum(int(np.prod(shape)) for shape in parameter_shapes(config).values())
