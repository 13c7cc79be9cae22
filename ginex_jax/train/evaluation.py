"""The score of a model on the seeds of a loader's batches: exact with all neighbours, an estimate with sampled ones."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from ginex_jax.pipeline.loading import Loader
from ginex_jax.train.inputs import NodeArrays, StepInputs, step_inputs
from ginex_jax.train.metrics import Tally, added, tally
from ginex_jax.train.step import Params, seed_logits


def batch_evaluator(model: Any, loader: Loader, nodes: NodeArrays, task: str) -> Callable[[Params], float]:
    """A function from parameters to the score over the loader's epoch 0: the same batches every time.

    Accuracy or micro-averaged F1, see `ginex_jax.train.metrics.Tally`. Compiled once for each shape of batch.
    """

    tally_of = _compiled_tally(model, task)

    def evaluate(params: Params) -> float:
        sums = Tally.zero()
        with loader.stream(0, loader.steps_per_epoch) as stream:
            for loaded in stream:
                sums = tally_of(sums, params, step_inputs(loaded, nodes))
                sums.loss_sum.block_until_ready()
                loaded.release()
        return sums.score

    return evaluate


@functools.lru_cache(maxsize=16)
def _compiled_tally(model: Any, task: str) -> Callable[[Tally, Params, StepInputs], Tally]:
    def tally_of(sums: Tally, params: Params, inputs: StepInputs) -> Tally:
        return added(sums, tally(seed_logits(model, params, inputs), inputs.targets, task))

    return jax.jit(tally_of)
