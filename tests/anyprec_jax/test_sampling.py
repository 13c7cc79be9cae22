import math
from typing import Any

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyprec_jax.sampling import Sampling, checked_sampling, filter_logits, sample

VOCAB = 50
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 7},
    {"temperature": 1.0, "top_k": VOCAB + 100},
    {"temperature": 1.0, "top_p": 0.01},
    {"temperature": 1.0, "top_p": 0.6},
    {"temperature": 1.0, "top_p": 1.0},
    {"temperature": 1.0, "min_p": 0.0},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 0.7, "top_k": 12, "top_p": 0.8, "min_p": 0.05},
]


def distribution(
    logits: np.ndarray,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> np.ndarray:
    """Probability of every token, float64: each filter drops tokens one at a time and renormalises what it leaves."""
    logits = logits.astype(np.float64) / temperature
    p = np.exp(logits - logits.max())
    p /= p.sum()
    likeliest_first = sorted(range(len(p)), key=lambda i: -p[i])
    kept = [i for i in likeliest_first if top_k is None or p[i] >= p[likeliest_first[min(top_k, len(p)) - 1]]]
    p = renormalised(p, kept)
    if top_p is not None:
        kept = [i for i in kept if sum(p[j] for j in kept if p[j] > p[i]) < top_p]
        p = renormalised(p, kept)
    if min_p is not None:
        p = renormalised(p, [i for i in kept if p[i] >= min_p * p.max()])
    return p


def renormalised(p: np.ndarray, kept: list[int]) -> np.ndarray:
    mask = np.isin(np.arange(len(p)), kept)
    return np.where(mask, p, 0) / p[mask].sum()


def normal_logits(seed: int, *, scale: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=VOCAB) * scale).astype(np.float32)


compiled_filter = jax.jit(filter_logits)


def probabilities(logits: np.ndarray, **settings: Any) -> np.ndarray:
    return np.asarray(jax.nn.softmax(compiled_filter(jnp.asarray(logits), checked_sampling(**settings))))


class TestFilters:
    @pytest.mark.parametrize("settings", SETTINGS, ids=str)
    def test_the_distribution_is_that_of_slow_numpy(self, settings: dict[str, Any]) -> None:
        for seed in range(5):
            logits = normal_logits(seed)
            expected = distribution(logits, **settings)
            # Logits reach 6 / 0.3 = 20 in size and are rounded to 2**-24 of it; so are probabilities, relatively.
            np.testing.assert_allclose(probabilities(logits, **settings), expected, rtol=20 * 2**-20, atol=1e-12)

    @pytest.mark.parametrize("settings", SETTINGS, ids=str)
    def test_the_distribution_is_that_of_transformers(self, settings: dict[str, Any]) -> None:
        torch = pytest.importorskip("torch", reason="the parity extra is not installed")
        warpers = pytest.importorskip(
            "transformers.generation.logits_process", reason="the parity extra is not installed"
        )
        chain = [warpers.TemperatureLogitsWarper(settings["temperature"])]
        for name, warper in (
            ("top_k", warpers.TopKLogitsWarper),
            ("top_p", warpers.TopPLogitsWarper),
            ("min_p", warpers.MinPLogitsWarper),
        ):
            if name in settings:
                chain.append(warper(settings[name]))
        for seed in range(5):
            scores = torch.tensor(normal_logits(seed))[None]
            for warper in chain:
                scores = warper(None, scores)
            expected = torch.softmax(scores, dim=-1)[0].numpy()
            ours = probabilities(normal_logits(seed), **settings)
            np.testing.assert_array_equal(ours > 0, expected > 0)
            np.testing.assert_allclose(ours, expected, rtol=20 * 2**-20, atol=1e-12)

    @given(
        logits=hnp.arrays(np.float32, VOCAB, elements=st.integers(-40, 40).map(lambda i: i / 4)),
        top_k=st.integers(1, VOCAB),
        top_p=st.sampled_from([0.05, 0.3, 0.7, 0.95]),
        min_p=st.sampled_from([0.01, 0.2]),
    )
    def test_equal_logits_share_a_fate_and_the_likeliest_stay(
        self, logits: np.ndarray, top_k: int, top_p: float, min_p: float
    ) -> None:
        settings = {"temperature": 1.0, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        kept = np.isfinite(compiled_filter(jnp.asarray(logits), checked_sampling(**settings)))
        assert kept[logits == logits.max()].all()
        threshold = logits[kept].min()
        np.testing.assert_array_equal(kept, logits >= threshold)

    @given(permutation=st.permutations(range(VOCAB)))
    def test_the_order_of_the_vocabulary_does_not_matter(self, permutation: list[int]) -> None:
        logits = normal_logits(0)
        settings = {"temperature": 0.7, "top_k": 12, "top_p": 0.8, "min_p": 0.05}
        straight, permuted = probabilities(logits, **settings), probabilities(logits[permutation], **settings)
        np.testing.assert_array_equal(straight[permutation] > 0, permuted > 0)

    @pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e6])
    def test_extreme_temperatures_stay_finite(self, temperature: float) -> None:
        p = probabilities(normal_logits(0), temperature=temperature, top_k=10, top_p=0.9, min_p=0.01)
        assert np.isfinite(p).all()
        assert math.isclose(p.sum(), 1, rel_tol=VOCAB * 2**-23)
        if temperature < 1:
            assert p[normal_logits(0).argmax()] == 1

    def test_tokens_that_cannot_be_drawn_stay_so(self) -> None:
        logits = normal_logits(0)
        logits[::2] = -np.inf
        for settings in SETTINGS:
            assert not probabilities(logits, **settings)[::2].any()

    def test_compiled_or_not(self) -> None:
        logits, settings = jnp.asarray(normal_logits(0)), checked_sampling(**SETTINGS[-1])
        # A division may become a product with the inverse: two more roundings.
        np.testing.assert_allclose(compiled_filter(logits, settings), filter_logits(logits, settings), rtol=3 * 2**-24)

    def test_half_precision_logits(self) -> None:
        logits = jnp.asarray(normal_logits(0)).astype(jnp.bfloat16)
        filtered = filter_logits(logits, checked_sampling(temperature=0.5, top_k=5))
        assert filtered.dtype == jnp.float32
        assert int(jnp.isfinite(filtered).sum()) == 5


class TestSample:
    def test_temperature_zero_takes_the_likeliest(self) -> None:
        for seed in range(5):
            logits = jnp.asarray(normal_logits(seed))
            token = sample(logits, jax.random.key(seed), checked_sampling(temperature=0, top_k=3, top_p=0.5, min_p=0.5))
            assert int(token) == int(np.argmax(logits))
        assert int(sample(jnp.zeros(VOCAB), jax.random.key(0), Sampling())) == 0

    @pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[-1]], ids=str)
    def test_tokens_are_drawn_as_often_as_they_should(self, settings: dict[str, Any]) -> None:
        draws = 20_000
        logits = jnp.asarray(normal_logits(3))
        keys = jax.random.split(jax.random.key(1), draws)
        tokens = jax.vmap(lambda key: sample(logits, key, checked_sampling(**settings)))(keys)
        counts = np.bincount(np.asarray(tokens), minlength=VOCAB)
        expected = draws * distribution(np.asarray(logits), **settings)
        assert not counts[expected == 0].any()
        # Chi-squared over the tokens with enough draws, 5 standard deviations above its mean.
        usual = expected > 10
        chi_squared = np.sum((counts - expected)[usual] ** 2 / expected[usual])
        assert chi_squared < usual.sum() + 5 * math.sqrt(2 * usual.sum())

    def test_the_key_decides(self) -> None:
        logits = jnp.zeros(10_000)
        draw = [int(sample(logits, jax.random.key(seed), checked_sampling(temperature=1))) for seed in (1, 1, 2)]
        assert draw[0] == draw[1] != draw[2]

    def test_a_batch_by_vmap_is_its_rows(self) -> None:
        logits = jnp.stack([jnp.asarray(normal_logits(seed)) for seed in range(4)])
        keys = jax.random.split(jax.random.key(0), 4)
        settings = checked_sampling(**SETTINGS[-1])
        batch = jax.vmap(sample, in_axes=(0, 0, None))(logits, keys, settings)
        assert batch.tolist() == [int(sample(logits[i], keys[i], settings)) for i in range(4)]

    def test_other_settings_compile_nothing(self) -> None:
        compiled = jax.jit(sample)
        for settings in ({"temperature": 1.0, "top_k": 5}, {"temperature": 0.3, "top_k": 9}):
            logits, key = jnp.asarray(normal_logits(0)), jax.random.key(0)
            assert int(compiled(logits, key, checked_sampling(**settings))) == int(
                sample(logits, key, checked_sampling(**settings))
            )
        assert compiled._cache_size() == 1


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"temperature": -0.1}, "temperature should be 0 .* or more, and finite, but is -0.1"),
        ({"temperature": math.nan}, "temperature should be"),
        ({"temperature": math.inf}, "temperature should be"),
        ({"top_k": 0}, "top_k should be 1 or more, but is 0"),
        ({"top_p": 0.0}, "top_p should be above 0 and at most 1, but is 0.0"),
        ({"top_p": 1.5}, "top_p should be above 0 and at most 1, but is 1.5"),
        ({"min_p": -1.0}, "min_p should be between 0 and 1, but is -1.0"),
        ({"min_p": 1.1}, "min_p should be between 0 and 1, but is 1.1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        checked_sampling(**settings)
