"""Data parallel training: one mini-batch divided among devices, of one process or of several. Importing this module imports jax."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int32, UInt32

from ginex_jax.batch import BatchShape, grown, padded
from ginex_jax.pipeline.divided_loader import DividedBatch
from ginex_jax.pipeline.loading import LoadedBatch
from ginex_jax.train.config import TrainConfig
from ginex_jax.train.inputs import NodeArrays, StepInputs, step_inputs
from ginex_jax.train.metrics import Tally, added, mean_loss, tally
from ginex_jax.train.step import Params, Step, TrainState, make_optimizer, seed_logits

_AXIS = "data"


class DataParallel:
    """Devices that share every mini-batch: share d of it is the work of device d, and all have the same parameters.

    The gradient is the sum of the shares' over the number of labelled targets of all: that of the whole mini-batch, whatever the shares'
    sizes. Neighbours are drawn for each node by numbers of its own, so that the result is that of a single device but for the order of
    sums. Dropout alone is another: each share has its own key.

    With several processes (`jax.distributed.initialize` first), each samples and reads its own shares only; they must make the same calls
    in the same order.
    """

    def __init__(self, devices: Sequence[Any] | None = None) -> None:
        """Takes JAX devices, in the order of the shares; all there are, of all processes, if not given."""
        self._mesh = Mesh(np.array(jax.devices() if devices is None else devices), (_AXIS,))
        self._processes = len({device.process_index for device in self._mesh.devices.flat})

    @property
    def num_shares(self) -> int:
        return self._mesh.size

    @property
    def local_shares(self) -> tuple[int, ...]:
        """The numbers of the shares that this process computes, ascending: those that it needs loaders for."""
        here = jax.process_index()
        return tuple(i for i, device in enumerate(self._mesh.devices.flat) if device.process_index == here)

    @property
    def transfers_ahead(self) -> bool:
        """Not with several processes: they agree on shapes, and must do so in the order of everything else that they do together."""
        return self._processes == 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes what needs to be written once."""
        return jax.process_index() == min(device.process_index for device in self._mesh.devices.flat)

    def replicated(self, tree: Any) -> Any:
        """Host arrays, the same in every process, on every device."""
        sharding = NamedSharding(self._mesh, PartitionSpec())

        def placed(leaf: Any) -> jax.Array:
            array = np.array(leaf, copy=True)
            return jax.make_array_from_process_local_data(sharding, array, array.shape)

        return jax.tree.map(placed, tree)

    def inputs(self, loaded: DividedBatch, nodes: NodeArrays, shapes: Sequence[BatchShape]) -> StepInputs:
        """Every array with one part a device in front: what the step takes.

        Args:
          loaded: with the shares of `local_shares`.
          nodes: as for `step_inputs`.
          shapes: the loader's, ascending, the same in every process. All shares are padded to the largest that one of them needs.

        Raises:
          ValueError: there are more or fewer shares than devices here.
        """
        if len(loaded.shares) != len(self.local_shares):
            raise ValueError(
                f"there should be a share for each of {len(self.local_shares)} devices, got {len(loaded.shares)}"
            )
        needed = max(list(shapes).index(share.batch.shape) for share in loaded.shares)
        shape = shapes[self._agreed(needed) if len(shapes) > 1 else needed]
        parts = [step_inputs(_padded(share, shape), nodes) for share in loaded.shares]
        sharding = NamedSharding(self._mesh, PartitionSpec(_AXIS))

        def placed(*leaves: np.ndarray) -> jax.Array:
            here = np.stack(leaves)
            return jax.make_array_from_process_local_data(sharding, here, (self.num_shares, *here.shape[1:]))

        return jax.tree.map(placed, *parts)

    def any(self, flag: bool) -> bool:
        """Whether it is True in one of the processes."""
        return self._agreed(int(flag)) == 1

    def compiled_step(self, model: Any, config: TrainConfig) -> Step:
        """As `ginex_jax.train.step.compiled_step`, for the inputs that `inputs` gives and a state made by `replicated`."""
        optimizer = make_optimizer(config)
        sums_of_shares = jax.shard_map(
            functools.partial(_sums_of_shares, model, config.task),
            mesh=self._mesh,
            in_specs=(PartitionSpec(), PartitionSpec(_AXIS), PartitionSpec(), PartitionSpec()),
            out_specs=PartitionSpec(),
            check_vma=False,  # sums over shares are written out
        )

        def step_of(
            state: TrainState, inputs: StepInputs, step: Int32[Array, ""] | int, key_words: UInt32[Array, " words"]
        ) -> tuple[TrainState, Float32[Array, ""]]:
            sums, gradient = sums_of_shares(state.params, inputs, jnp.asarray(step), jnp.asarray(key_words))
            gradient = jax.tree.map(lambda leaf: leaf / jnp.maximum(sums.num_targets, 1).astype(leaf.dtype), gradient)
            updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
            params = optax.apply_updates(state.params, updates)
            return TrainState(params, optimizer_state, added(state.metrics, sums)), mean_loss(sums)

        compiled = jax.jit(step_of, donate_argnums=0, out_shardings=NamedSharding(self._mesh, PartitionSpec()))

        def step(
            state: TrainState, inputs: StepInputs, number: Int32[Array, ""] | int, key: jax.Array
        ) -> tuple[TrainState, Float32[Array, ""]]:
            return compiled(state, inputs, number, np.asarray(jax.random.key_data(key)))  # a key is of one process

        return step

    def _agreed(self, number: int) -> int:
        """The largest that a process has."""
        if self._processes == 1:
            return number
        return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def _sums_of_shares(
    model: Any,
    task: str,
    params: Params,
    inputs: StepInputs,
    step: Int32[Array, ""],
    key_words: UInt32[Array, " words"],
) -> tuple[Tally, Params]:
    """On one device: what all shares add up to, and its gradient. `inputs` is this device's part."""
    inputs, key = jax.tree.map(lambda leaf: leaf[0], inputs), jax.random.wrap_key_data(key_words, impl="threefry2x32")
    dropout = jax.random.fold_in(jax.random.fold_in(key, step), jax.lax.axis_index(_AXIS))

    def loss_of(params: Params) -> tuple[Float32[Array, ""], Tally]:
        sums = tally(seed_logits(model, params, inputs, dropout), inputs.targets, task)
        return jnp.asarray(sums.loss_sum), sums

    gradient, sums = jax.grad(loss_of, has_aux=True)(params)
    return jax.lax.psum((sums, gradient), _AXIS)


def _padded(loaded: LoadedBatch, shape: BatchShape) -> LoadedBatch:
    if loaded.batch.shape == shape:
        return loaded
    features = grown(loaded.features, shape.level_sizes[-1])
    return dataclasses.replace(loaded, batch=padded(loaded.batch, shape), features=features)
