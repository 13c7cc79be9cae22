"""Conversions keep a tensor in memory, however large the model is. Linux only."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyprec_jax.checkpoint import orbax
from anyprec_jax.checkpoint.source import Source, model_source
from tests.anyprec_jax.tiny import quantized_tiny_model, tiny_config

SIZES: dict[str, int] = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_heads": 8,
    "num_kv_heads": 4,
    "head_dim": 64,
}
LAYERS = 36
LAYER_WEIGHTS = 512 * 512 * 3 + 3 * 512 * 1536

# The peak is that of the process (not ru_maxrss, which a child inherits): conversions of the small model first, and several times, for
# with the same model it rises a while too. One arena of malloc: with one for each thread it is chance how much of what was freed is
# used again (growth of 15 to 36 MB; with one arena 6 to 9).
_PROGRAM = """
import re, sys
from pathlib import Path
from anyprec_jax.checkpoint.formats import export

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)) * 1024

root = Path(sys.argv[1])
for size in ("first", "second", "small", "large"):
    here = root / size
    export(here / "artefact", here / "huggingface", "huggingface", precision=4, dtype="float16")
    export(here / "artefact", here / "upstream", "upstream")
    export(here / "upstream", here / "back", "artefact")
    print(peak())
"""


def repeated(num_layers: int) -> Source:
    """A model of which every layer is the same, so that it need not be in memory here either."""
    one = model_source(quantized_tiny_model(num_layers=1, **SIZES))

    def read(parameter: str, layer: int | None) -> Any:
        return one.read(parameter, None if layer is None else 0)

    return dataclasses.replace(one, config=tiny_config(num_layers=num_layers, **SIZES), read=read)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process from /proc")
def test_the_peak_does_not_grow_with_the_model(tmp_path: Path) -> None:
    for name, num_layers in (("first", 12), ("second", 12), ("small", 12), ("large", LAYERS)):
        orbax.write_folder(tmp_path / name / "artefact", repeated(num_layers), provenance={})
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    assert done.returncode == 0, done.stderr
    *_, small, large = map(int, done.stdout.split())
    assert large <= 4 * LAYER_WEIGHTS + 500_000_000
    # The files of the large model are of 55 MB in 4 bits and of 225 MB as float16, three times those of the small one.
    packed = (tmp_path / "large" / "upstream" / "pytorch_model.bin").stat().st_size
    plain = (tmp_path / "large" / "huggingface" / "model.safetensors").stat().st_size
    assert packed > 55_000_000 and plain > 225_000_000
    assert large - small <= 35_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
def test_a_model_larger_than_memory_is_allowed_to_be(tmp_path: Path) -> None:
    """1.2 GB of zeros, a hole in the file, under a limit of its largest layer in float32 and 500 MB."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "hidden_size": 2048,
        "intermediate_size": 8192, "num_hidden_layers": 10, "num_attention_heads": 32, "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    }  # fmt: skip
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (512, 2048), "model.norm": (2048,)}
    for layer in range(10):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj": (2048, 2048) for name in "qo"}
        shapes |= {f"{at}.self_attn.{name}_proj": (512, 2048) for name in "kv"}
        shapes |= {f"{at}.mlp.{name}_proj": (8192, 2048) for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj": (2048, 8192)}
        shapes |= {f"{at}.{name}_layernorm": (2048,) for name in ("input", "post_attention")}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[f"{name}.weight"] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    with (model / "model.safetensors").open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        stream.truncate(8 + len(encoded) + end)
    assert end > 1_200_000_000
    program = """
import resource, sys
from anyprec_jax.checkpoint.formats import export
resource.setrlimit(resource.RLIMIT_DATA, (740_000_000, 740_000_000))
export(sys.argv[1], sys.argv[2], "orbax")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(model), str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "manifest.json").is_file()
