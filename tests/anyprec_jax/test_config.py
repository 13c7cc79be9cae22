import dataclasses

import pytest

from anyprec_jax.config import QuantizeConfig


def test_defaults_are_the_papers() -> None:
    config = QuantizeConfig()
    assert (config.seed_precision, config.parent_precision) == (3, 8)
    assert list(config.precisions) == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(("seed", "parent"), [(1, 1), (1, 8), (8, 8), (2, 4)])
def test_good_precisions(seed: int, parent: int) -> None:
    config = QuantizeConfig(seed_precision=seed, parent_precision=parent)
    assert list(config.precisions) == list(range(seed, parent + 1))


@pytest.mark.parametrize(("seed", "parent"), [(0, 8), (3, 9), (5, 4), (-1, 2), (9, 9)])
def test_precisions_out_of_order_or_range(seed: int, parent: int) -> None:
    with pytest.raises(ValueError, match=f"seed_precision={seed}, parent_precision={parent}"):
        QuantizeConfig(seed_precision=seed, parent_precision=parent)


def test_is_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        QuantizeConfig().seed_precision = 4  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        QuantizeConfig(3, 8)  # pyright: ignore[reportCallIssue]
