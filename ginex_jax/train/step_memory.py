"""How much memory a compiled step takes. Importing this module imports jax."""

from typing import Any, NamedTuple

import jax
import numpy as np

from ginex_jax.batch import BatchShape, MiniBatch, padded
from ginex_jax.models.initialization import initial_parameters
from ginex_jax.pipeline.loading import BatchReport, LoadedBatch
from ginex_jax.train.config import TrainConfig
from ginex_jax.train.inputs import NodeArrays, step_inputs
from ginex_jax.train.step import compiled_step, initial_state, random_keys


class StepMemory(NamedTuple):
    """Bytes of a step.

    Attributes:
      step: of parameters, optimizer, and what XLA needs besides, by its own analysis; 0 for what a backend does not tell.
      inputs: of a batch on the device, features included.
    """

    step: int
    inputs: int


def step_memory(
    model: Any,
    config: TrainConfig,
    nodes: NodeArrays,
    batch: MiniBatch,
    shape: BatchShape,
    *,
    num_features: int,
    feature_dtype: np.dtype[Any],
) -> StepMemory:
    """What a step takes for batches of some shape.

    Args:
      nodes: as for `fit`.
      batch: any one of the run, without padding.
      shape: what batches are padded to. The step for it is compiled here, and again when it is used.
    """
    batch = padded(batch, shape)
    features = np.broadcast_to(np.zeros((), feature_dtype), (shape.level_sizes[-1], num_features))
    report = BatchReport(rows=0, misses=0)
    inputs = step_inputs(LoadedBatch(step=0, epoch=0, index=0, batch=batch, features=features, report=report), nodes)
    first_key, key = random_keys(config.seed)
    state = jax.eval_shape(lambda: initial_state(initial_parameters(model, num_features, first_key), config))
    compiled = compiled_step(model, config).lower(state, jax.tree.map(_abstract, inputs), 0, key).compile()
    analysis = compiled.memory_analysis()
    step = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    if analysis is not None:
        step += analysis.temp_size_in_bytes
        step += max(0, analysis.output_size_in_bytes - analysis.alias_size_in_bytes)
    return StepMemory(step, sum(leaf.nbytes for leaf in jax.tree.leaves(inputs)))


def _abstract(array: np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)
