import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyprec_jax.calibration import calibration_windows, mixed_windows


@given(
    num_sequences=st.integers(1, 6),
    sequence_length=st.integers(2, 9),
    spare=st.integers(0, 20),
    seed=st.integers(0, 2**31),
)
def test_windows_are_slices_of_the_text_that_do_not_overlap(
    num_sequences: int, sequence_length: int, spare: int, seed: int
) -> None:
    tokens = np.arange(num_sequences * sequence_length + spare, dtype=np.int32)

    windows = calibration_windows(tokens, num_sequences=num_sequences, sequence_length=sequence_length, seed=seed)

    assert windows.shape == (num_sequences, sequence_length)
    np.testing.assert_array_equal(np.diff(windows, axis=1), 1)  # each is consecutive
    assert len(np.unique(windows)) == windows.size  # none shares a token with another


def test_every_placement_is_equally_likely() -> None:
    """Two windows of 2 among 6 tokens can be placed in 6 ways; 3,000 draws should hit each about 500 times."""
    tokens = np.arange(6, dtype=np.int32)
    placements: dict[tuple[int, ...], int] = {}
    for seed in range(3000):
        windows = calibration_windows(tokens, num_sequences=2, sequence_length=2, seed=seed)
        starts = tuple(sorted(windows[:, 0].tolist()))
        placements[starts] = placements.get(starts, 0) + 1

    assert set(placements) == {(0, 2), (0, 3), (0, 4), (1, 3), (1, 4), (2, 4)}
    expected = 3000 / 6
    chi_squared = sum((count - expected) ** 2 / expected for count in placements.values())
    assert chi_squared < 20.5  # the 99.9 % quantile with 5 degrees of freedom


def test_the_seed_decides() -> None:
    tokens = np.arange(10_000, dtype=np.int32)
    draw = {seed: calibration_windows(tokens, num_sequences=4, sequence_length=16, seed=seed) for seed in (0, 1)}
    np.testing.assert_array_equal(draw[0], calibration_windows(tokens, num_sequences=4, sequence_length=16, seed=0))
    assert not np.array_equal(draw[0], draw[1])


def test_too_little_text_says_how_much_is_needed() -> None:
    with pytest.raises(ValueError, match=r"has 99 tokens, but 2 sequences of 50 need 100"):
        calibration_windows(np.zeros(99, np.int32), num_sequences=2, sequence_length=50, seed=0)


@pytest.mark.parametrize(("num_sequences", "sequence_length"), [(0, 8), (-1, 8), (1, 1), (1, 0)])
def test_counts_out_of_range(num_sequences: int, sequence_length: int) -> None:
    with pytest.raises(ValueError, match="at least 1 sequence of at least 2 tokens"):
        calibration_windows(
            np.zeros(99, np.int32), num_sequences=num_sequences, sequence_length=sequence_length, seed=0
        )


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    num_sequences=st.integers(1, 9),
    sequence_length=st.integers(2, 5),
    seed=st.integers(0, 2**31),
)
def test_windows_of_several_texts_are_shared_out_evenly(
    sizes: list[int], num_sequences: int, sequence_length: int, seed: int
) -> None:
    texts = [np.arange(size, dtype=np.int32) + 1000 * i for i, size in enumerate(sizes)]
    room = [size // sequence_length for size in sizes]
    if sum(room) < num_sequences:
        return

    windows = mixed_windows(texts, num_sequences=num_sequences, sequence_length=sequence_length, seed=seed)

    assert windows.shape == (num_sequences, sequence_length)
    np.testing.assert_array_equal(np.diff(windows, axis=1), 1)  # none crosses from one text into the next
    assert len(np.unique(windows)) == windows.size
    shares = np.bincount(windows[:, 0] // 1000, minlength=len(sizes))
    # Fair: whoever has fewer than another, by more than the one that is left over, has no room for more.
    for mine, space in zip(shares, room, strict=True):
        assert mine == space or mine >= shares.max() - 1


def test_one_text_gives_the_windows_it_gave_alone() -> None:
    tokens = np.arange(50, dtype=np.int32)
    settings = {"num_sequences": 4, "sequence_length": 6, "seed": 3}
    np.testing.assert_array_equal(mixed_windows([tokens], **settings), calibration_windows(tokens, **settings))


def test_texts_that_are_too_short_together() -> None:
    texts = [np.arange(7, dtype=np.int32), np.arange(9, dtype=np.int32)]
    with pytest.raises(ValueError, match="has 16 tokens, but 4 sequences of 5 need 20"):
        mixed_windows(texts, num_sequences=4, sequence_length=5, seed=0)
    with pytest.raises(ValueError, match="at least one text"):
        mixed_windows([], num_sequences=4, sequence_length=5, seed=0)
