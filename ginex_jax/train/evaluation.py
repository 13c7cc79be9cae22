"""The score of a model on the seeds of a loader's batches: exact with all neighbours, an estimate with sampled ones."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Shaped

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
                jax.block_until_ready(sums)
                loaded.release()
        return sums.score

    return evaluate


@functools.lru_cache(maxsize=16)
def _compiled_tally(model: Any, task: str) -> Callable[[Tally, Params, StepInputs], Tally]:
    def tally_of(sums: Tally, params: Params, inputs: StepInputs) -> Tally:
        return added(sums, tally(seed_logits(model, params, inputs), inputs.targets, task))

    return jax.jit(tally_of)


class Score:
    """Accuracy or micro-averaged F1 of outputs that come in pieces, on the host. The kind of labels says which."""

    def __init__(self) -> None:
        self._hits = self._errors = 0

    def add(self, outputs: Float[np.ndarray, "rows outputs"], targets: Shaped[np.ndarray, "rows ..."]) -> None:
        """Counts rows with labels: integers, -1 for none; or floats, one for each output, NaN for none."""
        if targets.ndim == 1:
            known = targets >= 0
            right = int(np.count_nonzero(outputs.argmax(axis=1)[known] == targets[known]))
            self._hits += right
            self._errors += int(np.count_nonzero(known)) - right
            return
        known = ~np.isnan(targets)
        predicted, positive = (outputs > 0)[known], (targets > 0.5)[known]
        self._hits += 2 * int(np.count_nonzero(predicted & positive))
        self._errors += int(np.count_nonzero(predicted ^ positive))

    @property
    def value(self) -> float:
        """In [0, 1]; 0 where nothing was counted."""
        return self._hits / max(self._hits + self._errors, 1)
