import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from ginex_jax import random_numbers
from tests.ginex_jax import oracles_sampling as oracles

WORDS = st.integers(0, 2**64 - 1)


def test_hashed_is_splitmix64() -> None:
    """The generator's first outputs from the seed 0; the rest is the oracle's, in Python's integers."""
    assert [random_numbers.hashed(0, i) for i in range(3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


@hypothesis.given(WORDS, WORDS)
def test_hashed_equals_the_oracle(key: int, word: int) -> None:
    assert random_numbers.hashed(np.uint64(key), np.uint64(word)) == oracles.hashed(key, word)


@hypothesis.given(WORDS, st.integers(0, 2**32), st.one_of(st.integers(1, 100), st.integers(1, 2**63 - 1)))
@hypothesis.example(3, 0, 2**62 + 1)  # a quarter of all numbers is rejected
def test_bounded_equals_the_oracle(key: int, draw: int, n: int) -> None:
    number = random_numbers.bounded(np.uint64(key), draw, n)
    assert number == oracles.bounded(key, draw, n)
    assert 0 <= number < n


def test_rejected_numbers_are_replaced_without_bias() -> None:
    """Of 3 * 2**61 and 2**62 + 1 results a part would be twice as likely if nothing was rejected."""
    for n in (3 * 2**61, 2**62 + 1):
        numbers = [random_numbers.bounded(np.uint64(1), draw, n) for draw in range(6000)]
        thirds = np.bincount([3 * number // n for number in numbers], minlength=3)
        assert scipy.stats.chisquare(thirds).pvalue > 1e-3


@pytest.mark.parametrize("n", [2, 3, 10, 1000])
def test_bounded_is_uniform(n: int) -> None:
    key = random_numbers.batch_key(1, 2, 3)
    counts = np.bincount([random_numbers.bounded(key, draw, n) for draw in range(20 * n + 2000)], minlength=n)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_uniform_equals_the_oracle_and_never_reaches_its_bounds() -> None:
    for draw in range(100):
        number = random_numbers.uniform(np.uint64(5), draw)
        assert number == oracles.uniform(5, draw)
        assert 0 < number < 1


def test_streams_of_neighbouring_words_are_unrelated() -> None:
    """Neighbouring seeds, epochs, batches and draws: bits agree half of the time."""
    base = [int(random_numbers.hashed(random_numbers.batch_key(0, 0, 0), draw)) for draw in range(200)]
    for words in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        other = [int(random_numbers.hashed(random_numbers.batch_key(*words), draw)) for draw in range(200)]
        agree = sum(64 - (a ^ b).bit_count() for a, b in zip(base, other, strict=True))
        assert abs(agree - 6400) < 4 * np.sqrt(12800 / 4)


@hypothesis.given(st.integers(1, 300), st.integers(0, 2**64 - 1), st.integers(0, 2**63))
@hypothesis.settings(max_examples=30)
def test_permuted_is_a_permutation_and_equals_the_oracle(n: int, seed: int, epoch: int) -> None:
    order = random_numbers.permuted(seed, epoch, n, np.arange(n))
    assert sorted(order.tolist()) == list(range(n))
    assert order.tolist() == oracles.permuted(seed, epoch, n)


def test_permuted_places_can_be_asked_for_alone() -> None:
    n = 10**12
    positions = np.array([n - 1, 0, 17, 0])
    order = random_numbers.permuted(1, 2, n, positions)
    assert order[1] == order[3]
    assert len(set(order.tolist())) == 3
    for i in range(4):
        assert random_numbers.permuted(1, 2, n, positions[i : i + 1])[0] == order[i]
    large = random_numbers.permuted(3, 0, 100_000, np.arange(100_000))
    np.testing.assert_array_equal(np.sort(large), np.arange(100_000))


@pytest.mark.parametrize("n", [2, 3, 5, 10, 17])
def test_every_place_is_as_likely_for_every_element(n: int) -> None:
    counts, num_epochs = np.zeros((n, n)), 4000
    for epoch in range(num_epochs):
        counts[np.arange(n), random_numbers.permuted(0, epoch, n, np.arange(n))] += 1
    # Rows and columns sum to num_epochs: (n - 1)**2 degrees of freedom, once scaled for drawing without replacement.
    statistic = (n - 1) / n * ((counts - num_epochs / n) ** 2 / (num_epochs / n)).sum()
    assert scipy.stats.chi2.sf(statistic, (n - 1) ** 2) > 1e-3


def test_all_orders_of_four_are_as_likely() -> None:
    orders = [tuple(random_numbers.permuted(7, epoch, 4, np.arange(4)).tolist()) for epoch in range(4800)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_positions_outside_are_refused() -> None:
    for position in (-1, 5):
        with pytest.raises(ValueError, match=r"positions should be in \[0, 5\)"):
            random_numbers.permuted(0, 0, 5, np.array([position]))
    assert len(random_numbers.permuted(0, 0, 0, np.empty(0, np.int64))) == 0
