"""Where steps are computed: what the training loop asks of one device, or of several."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from ginex_jax.batch import BatchShape
from ginex_jax.train.config import TrainConfig
from ginex_jax.train.inputs import NodeArrays, StepInputs, step_inputs
from ginex_jax.train.step import Step, compiled_step


@runtime_checkable
class Devices(Protocol):
    """One device, or several with the same parameters."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes what needs to be written once."""
        ...

    def replicated(self, tree: Any) -> Any:
        """Host arrays, the same in every process, on every device."""
        ...

    @property
    def transfers_ahead(self) -> bool:
        """Whether `inputs` may be called by another thread, while a step is computed."""
        ...

    def inputs(self, loaded: Any, nodes: NodeArrays, shapes: Sequence[BatchShape]) -> StepInputs:
        """What the step takes of a loaded batch, whose loader has these shapes: on the devices, and nothing of it in the batch's memory."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether it is True in one of the processes. All of them ask at the same time."""
        ...

    def compiled_step(self, model: Any, config: TrainConfig) -> Step:
        """As `ginex_jax.train.step.compiled_step`."""
        ...


class OneDevice:
    """JAX's default device."""

    is_first = True
    transfers_ahead = True

    def replicated(self, tree: Any) -> Any:
        return tree

    def inputs(self, loaded: Any, nodes: NodeArrays, shapes: Sequence[BatchShape]) -> StepInputs:
        inputs = step_inputs(loaded, nodes)
        # The CPU would read the loader's memory where it lies, whatever `may_alias` says.
        if jax.default_backend() == "cpu":
            inputs = inputs._replace(features=np.array(inputs.features))
        return jax.block_until_ready(jax.device_put(inputs))

    def any(self, flag: bool) -> bool:
        return flag

    def compiled_step(self, model: Any, config: TrainConfig) -> Step:
        return compiled_step(model, config)
