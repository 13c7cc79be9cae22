"""One training step, pure: loss, gradient, update. Importing this module imports jax."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int32

from ginex_jax.train.config import TrainConfig
from ginex_jax.train.inputs import StepInputs
from ginex_jax.train.metrics import Tally, added, mean_loss, tally

Params = Any  # what `model.init` returns


class TrainState(NamedTuple):
    """All that a step changes."""

    params: Params
    optimizer: optax.OptState
    metrics: Tally  # since the last line of the log


Step = Callable[[TrainState, StepInputs, int, jax.Array], tuple[TrainState, Float32[Array, ""]]]


def random_keys(seed: int) -> tuple[jax.Array, jax.Array]:
    """The keys of the first parameters and of dropout. Unlike `jax.random.key`, all 63 bits of the seed count."""
    words = np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)
    first, dropout = jax.random.split(jax.random.wrap_key_data(words, impl="threefry2x32"))
    return first, dropout


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Adam; weight decay is a term of the gradient, as in the papers' code, not decoupled from it."""
    adam = optax.adam(config.learning_rate)
    return optax.chain(optax.add_decayed_weights(config.weight_decay), adam) if config.weight_decay else adam


def initial_state(params: Params, config: TrainConfig) -> TrainState:
    """The state before the first step."""
    return TrainState(params, make_optimizer(config).init(params), Tally.zero())


def seed_logits(
    model: Any, params: Params, inputs: StepInputs, dropout: jax.Array | None = None
) -> Float[Array, "seeds outputs"]:
    """The model's outputs for the seeds; with dropout where a key is given. Traceable."""
    arguments = inputs.blocks, inputs.features, inputs.node_data
    if dropout is None:
        outputs = model.apply(params, *arguments, train=False)
    else:
        outputs = model.apply(params, *arguments, train=True, rngs={"dropout": dropout})
    return outputs[inputs.seed_positions]


def train_step(
    state: TrainState,
    inputs: StepInputs,
    step: Int32[Array, ""] | int,
    *,
    model: Any,
    optimizer: optax.GradientTransformation,
    task: str,
    key: jax.Array,
) -> tuple[TrainState, Float32[Array, ""]]:
    """One update. Dropout's key is `fold_in(key, step)`, so that a step is the same whatever was computed before it.

    Returns:
      The new state, and the batch's mean loss before the update. Traceable.
    """

    def loss_of(params: Params) -> tuple[Float32[Array, ""], Tally]:
        sums = tally(seed_logits(model, params, inputs, jax.random.fold_in(key, step)), inputs.targets, task)
        return mean_loss(sums), sums

    (loss, sums), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(params, optimizer_state, added(state.metrics, sums)), loss


def compiled_step(model: Any, config: TrainConfig) -> Step:
    """`train_step` as `step(state, inputs, number, key)`, compiled once for each shape of batch and once for runs that differ by the seed.

    It consumes the state that it is given: its arrays are dead afterwards.
    """
    return _compiled_step(model, config.task, config.learning_rate, config.weight_decay)


@functools.lru_cache(maxsize=16)
def _compiled_step(model: Any, task: str, learning_rate: float, weight_decay: float) -> Step:
    optimizer = make_optimizer(TrainConfig(learning_rate=learning_rate, weight_decay=weight_decay))

    def step_of(
        state: TrainState, inputs: StepInputs, step: Int32[Array, ""] | int, key: jax.Array
    ) -> tuple[TrainState, Float32[Array, ""]]:
        return train_step(state, inputs, step, model=model, optimizer=optimizer, task=task, key=key)

    return jax.jit(step_of, donate_argnums=0)
