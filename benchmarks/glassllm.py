"""glassllm's English model, 0.85 M parameters in true float16, as a GGUF file; from the files of its package, none of whose code runs.

RoPE turns adjacent pairs, grouped queries, RMSNorm, SwiGLU, tied embeddings: a Llama, whose rows of q and k lie as llama.cpp wants them.
It was trained on children's books: perplexities on anything else are high, differences from itself are not.
"""

import json
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from anyprec_jax.models.config import ModelConfig
from anyprec_jax.tokenizer import Tokenizer
from benchmarks.llamacpp_build import PeerError
from benchmarks.llamacpp_files import tensor_shapes, write_llama

WEIGHTS, MERGES = "glassllm/weights/en.npz", "glassllm/weights/en.tokenizer.json"  # in the folder of the data packages
_SPECIALS = ("<pad>", "<unk>", "<bos>", "<eos>")
_SPACE = "▁"
_CHUNK = "\n|▁*[^▁\n]+|▁+"  # what merges do not cross
_MODULES = {  # of a GGUF layer: theirs, which multiplies from the right
    "attn_norm": "norm1.gamma",
    "attn_q": "attn.W_Q",
    "attn_k": "attn.W_K",
    "attn_v": "attn.W_V",
    "attn_output": "attn.W_O",
    "ffn_norm": "norm2.gamma",
    "ffn_gate": "ffn.W1",
    "ffn_up": "ffn.W3",
    "ffn_down": "ffn.W2",
}


def write_gguf(data: Path, target: Path) -> Path:
    """Its weights as a file of llama.cpp's, without the tokenizer; whole or not at all.

    Raises:
      PeerError: the package is not in `data`.
    """
    with np.load(found(data, WEIGHTS), allow_pickle=False) as stored:
        config = config_of(json.loads(str(stored["__config__"])), stored["blocks.0.ffn.W1"].shape[1])
        shapes = dict(tensor_shapes(config))
        return write_llama(target, config, shapes, (_tensor(stored, name) for name in shapes))


def config_of(theirs: dict, intermediate_size: int) -> ModelConfig:
    """The settings of a model, from its file."""
    return ModelConfig(
        vocab_size=theirs["vocab_size"],
        hidden_size=theirs["d_model"],
        intermediate_size=intermediate_size,
        num_layers=theirs["n_layers"],
        num_heads=theirs["n_heads"],
        num_kv_heads=theirs["n_kv_heads"],
        head_dim=theirs["d_model"] // theirs["n_heads"],
        max_position_embeddings=theirs["max_len"],
        norm_eps=theirs["eps"],
        rope_theta=theirs["rope_base"],
        tie_embeddings=True,
    )


def read_tokenizer(data: Path) -> Tokenizer:
    """Its byte-pair encoding of characters; one that it does not know is <unk>.

    Raises:
      PeerError: the package is not in `data`.
    """
    stored = json.loads(found(data, MERGES).read_text(encoding="utf-8"))
    merges = [tuple(pair) for pair in stored["merges"]]
    vocabulary = [*_SPECIALS, *stored["alphabet"], *map("".join, merges)]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges, unk_token="<unk>")
    )
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", _SPACE)])
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(_CHUNK), behavior="isolated")
    return Tokenizer(backend=backend)


def found(data: Path, name: str) -> Path:
    """A file of the package, or one line that says how to get it."""
    if not (path := data / name).is_file():
        raise PeerError(
            f"{path} is not there: `pip install --no-deps --require-hashes --target {data} "
            "--requirement benchmarks/glassllm-requirements.txt` fetches it (3 MB)"
        )
    return path


def _tensor(stored: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """One tensor of a GGUF file: matrices [n, k] float16, vectors float32."""
    module = name.removesuffix(".weight")
    if module == "token_embd":
        return stored["E"]
    if module == "output_norm":
        return stored["norm_f.gamma"].astype(np.float32)
    _, layer, module = module.split(".")
    values = stored[f"blocks.{layer}.{_MODULES[module]}"]
    return values.astype(np.float32) if values.ndim == 1 else np.ascontiguousarray(values.T)
