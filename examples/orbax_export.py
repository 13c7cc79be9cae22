"""`python -m examples.orbax_export FOLDER --precision 4`: an Orbax folder read by another JAX project.

It imports nothing of bandwise: Orbax restores the tree, the manifest says what is in it, and everything else is written out here. FOLDER
is an artefact, whose planes it decodes at a precision, or what `anyprec export --format orbax` writes, whose arrays are the weights.
The program prints the most likely tokens after a prompt of ids, computed by a Llama of forty lines.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp


def restored(folder: Path) -> dict[str, Any]:
    """The tree of a checkpoint: embedding, layers/q_proj and so on, final_norm, and head where it is not the embedding."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(folder.absolute() / "checkpoint")


def codes(planes: dict[str, Any], precision: int, k: int) -> jax.Array:
    """Plane p holds bit `parent - 1 - p` of every code; column `32 * j + i` is bit i of word j."""
    result = jnp.zeros((), jnp.int32)
    for plane in range(precision):
        words = jnp.asarray(planes[str(plane)])
        bits = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & jnp.uint32(1)
        result = 2 * result + bits.reshape(*words.shape[:-1], -1)[..., :k].astype(jnp.int32)
    return result


def weights(leaf: Any, precision: int | None, k: int | None) -> jax.Array:
    """A parameter as a plain array, `[n, k]` for each layer, whether it is one or is to be decoded."""
    if not isinstance(leaf, dict):
        return jnp.asarray(leaf, jnp.float32)
    if "codes" in leaf:  # affine rows of 8 bits
        rows = jnp.asarray(leaf["codes"], jnp.float32)
        return rows * jnp.asarray(leaf["scale"])[:, None] + jnp.asarray(leaf["offset"])[:, None]
    assert precision is not None and k is not None, "an artefact wants a --precision"
    if "codebooks" not in leaf:
        raise SystemExit(
            "these codebooks are compact: `anyprec export --format artefact --codebooks float16` decodes them"
        )
    book = jnp.asarray(leaf["codebooks"][str(precision)], jnp.float32)
    return jnp.take_along_axis(book, codes(leaf["bitplanes"], precision, k), axis=-1)


def parameters(folder: Path, precision: int | None) -> dict[str, Any]:
    """Every parameter as a plain array; those of the layers keep the layers as their first axis."""
    matrices = json.loads((folder / "manifest.json").read_text())["matrices"]
    tree = restored(folder)
    plain: dict[str, Any] = {
        name: weights(leaf, precision, matrices.get(name, {}).get("k"))
        for name, leaf in tree.items()
        if name != "layers"
    }
    plain["layers"] = {
        name: weights(leaf, precision, matrices.get(f"layers/{name}", {}).get("k"))
        for name, leaf in tree["layers"].items()
    }
    return plain


def norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """RMS norm over the last axis."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * scale


def rotated(x: jax.Array, theta: float) -> jax.Array:
    """Rotary embedding of [seq, heads, width]."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[0])[:, None] * theta ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def logits(params: dict[str, Any], config: dict[str, Any], tokens: jax.Array) -> jax.Array:
    """Of a Llama without biases and without rope scaling, after every token of [seq]."""
    heads, keys, width = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    theta, eps = config["rope_theta"], config["rms_norm_eps"]
    mask = jnp.tril(jnp.ones((len(tokens), len(tokens)), bool))
    x = params["embedding"][tokens]
    for layer in range(config["num_hidden_layers"]):
        p = {name: leaf[layer] for name, leaf in params["layers"].items()}
        h = norm(x, p["input_norm"], eps)
        q = rotated((h @ p["q_proj"].T).reshape(-1, heads, width), theta)
        k = jnp.repeat(rotated((h @ p["k_proj"].T).reshape(-1, keys, width), theta), heads // keys, axis=1)
        v = jnp.repeat((h @ p["v_proj"].T).reshape(-1, keys, width), heads // keys, axis=1)
        scores = jnp.where(mask, jnp.einsum("qhd,khd->hqk", q, k) / width**0.5, -jnp.inf)
        x += jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores), v).reshape(len(tokens), -1) @ p["o_proj"].T
        h = norm(x, p["post_attention_norm"], eps)
        x += (jax.nn.silu(h @ p["gate_proj"].T) * (h @ p["up_proj"].T)) @ p["down_proj"].T
    return norm(x, params["final_norm"], eps) @ params.get("head", params["embedding"]).T


def main(arguments: list[str] | None = None) -> None:
    """Prints the five likeliest tokens after the prompt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", type=int, help="bits to read of an artefact")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 3], help="ids of the prompt")
    options = parser.parse_args(arguments)
    config = json.loads((options.folder / "config.json").read_text())
    last = logits(parameters(options.folder, options.precision), config, jnp.asarray(options.tokens))[-1]
    for token in jnp.argsort(-last)[:5].tolist():
        print(f"token {token}: logit {last[token]:.4f}")


if __name__ == "__main__":
    main()
