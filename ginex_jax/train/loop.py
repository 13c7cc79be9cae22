"""The training loop: from any step to the end, and interrupted anywhere it goes on as if nothing had been."""

import dataclasses
import math
import reprlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from ginex_jax.models.initialization import initial_parameters
from ginex_jax.pipeline.divided_loader import DividedLoader
from ginex_jax.pipeline.loading import Loader
from ginex_jax.pipeline.report import StreamReport
from ginex_jax.pipeline.transferring import Transferred, TransferringStream
from ginex_jax.train.config import TrainConfig
from ginex_jax.train.devices import Devices, OneDevice
from ginex_jax.train.inputs import NodeArrays, StepInputs
from ginex_jax.train.metrics import Tally
from ginex_jax.train.run_log import RunLog, SeveralLogs
from ginex_jax.train.step import Params, TrainState, initial_state, random_keys

_STEPS_BEFORE_ETA = 2
_SECONDS_BETWEEN = 10.0  # checkpoints at ends of epochs: epochs may take milliseconds


@runtime_checkable
class Checkpoints(Protocol):
    """Where `fit` keeps its state: `ginex_jax.checkpoint.run_folder.RunFolder`."""

    def restore(self, template: Any) -> Any: ...

    def save(self, step: int, state: Any, progress: Mapping[str, Any]) -> None: ...

    def save_best(self, step: int, params: Any, progress: Mapping[str, Any]) -> None: ...

    def restore_best(self, template: Any) -> Any: ...


@dataclasses.dataclass
class RunProgress:
    """What a run must remember besides its state. JSON holds it."""

    step: int = 0
    rows: int = 0  # since the last line of the log
    misses: int = 0
    best_score: float | None = None
    best_step: int | None = None
    evaluations_since: int = 0  # without a better one

    @classmethod
    def restored(cls, values: Mapping[str, Any], step: int) -> "RunProgress":
        """From what a checkpoint of this step says; ValueError where that cannot be."""
        try:
            progress = cls(**{**values, "step": step})
        except TypeError as error:
            raise ValueError(f"the checkpoint's progress is damaged: {error}") from error
        counts = progress.rows, progress.misses, progress.evaluations_since
        best = progress.best_score, progress.best_step
        is_best_known = type(best[0]) is float and math.isfinite(best[0]) and type(best[1]) is int
        if not all(type(count) is int and count >= 0 for count in counts) or not (
            is_best_known or best == (None, None)
        ):
            raise ValueError(f"the checkpoint's progress is damaged: {reprlib.repr(dict(values))}")
        return progress


class Update(NamedTuple):
    """What there is to say while training goes on."""

    step: int
    num_steps: int
    loss: float | None  # of the last line of the log
    rows_per_second: float | None
    hit_rate: float | None
    seconds_left: float | None


class FitResult(NamedTuple):
    """How training ended.

    Attributes:
      params: of the best evaluation, or the last ones where there was none; of the host's.
      step: steps done.
      best_score, best_step: of the best evaluation.
      interrupted: it was asked to stop, and would have gone on.
      stopped_early: patience ran out.
      pipeline: what the loader did and which stage held it up; None where it does not tell, or nothing was left to do.
    """

    params: Params
    step: int
    best_score: float | None
    best_step: int | None
    interrupted: bool
    stopped_early: bool
    pipeline: StreamReport | None


def fit(
    model: Any,
    loader: Loader | DividedLoader,
    nodes: NodeArrays,
    config: TrainConfig,
    *,
    num_features: int,
    evaluate: Callable[[Params], float] | None = None,
    checkpoints: Checkpoints | None = None,
    log: RunLog | None = None,
    report: Callable[[Update], None] | None = None,
    stop: Callable[[], bool] | None = None,
    devices: Devices | None = None,
) -> FitResult:
    """Trains from the last checkpoint, or from the beginning where there is none, to the end.

    Bit-identical on one machine wherever and however often it was interrupted: batches and dropout are functions of the step, and a
    checkpoint has everything else.

    Args:
      model: as `ginex_jax.models.build_model` makes it.
      loader: of the training nodes.
      nodes: labels, and in-degrees if the model needs them.
      num_features: the width of the loader's features.
      evaluate: called after every `config.eval_every` epochs; more is better.
      checkpoints: where to restore from and save to; None keeps nothing.
      log: gets a record every `config.log_every` steps and at ends of epochs, and one for each evaluation.
      report: called after every step.
      stop: asked after every step; once it says True, a checkpoint is written and the loop ends.
      devices: a `DataParallel`, and the loader is a `DividedLoader` then; one device if not given. With several processes all of them
        restore and evaluate, and the first one writes checkpoints and the log.

    Raises:
      ValueError: the checkpoint does not fit, the loss is no longer finite, or labels and model do not fit.
      OSError: reading or writing failed. The last checkpoint is left as it was.
    """
    return _Loop(
        model, loader, nodes, config, num_features, evaluate, checkpoints, log, report, stop, devices or OneDevice()
    ).run()


class _Loop:
    """Owns all that changes."""

    def __init__(
        self,
        model: Any,
        loader: Loader | DividedLoader,
        nodes: NodeArrays,
        config: TrainConfig,
        num_features: int,
        evaluate: Callable[[Params], float] | None,
        checkpoints: Checkpoints | None,
        log: RunLog | None,
        report: Callable[[Update], None] | None,
        stop: Callable[[], bool] | None,
        devices: Devices,
    ) -> None:
        self._loader, self._nodes, self._config = loader, nodes, config
        self._evaluate = evaluate if config.eval_every else None
        self._checkpoints, self._report, self._stop = checkpoints, report, stop
        self._log = SeveralLogs() if log is None or not devices.is_first else log
        self._devices, self._step = devices, devices.compiled_step(model, config)
        first_key, self._dropout_key = random_keys(config.seed)
        first = initial_parameters(model, num_features, first_key)
        state, self._progress = self._restored(initial_state(first, config))
        self._state = devices.replicated(state)
        self._num_steps = config.epochs * loader.steps_per_epoch
        self._in_flight: jax.Array | None = None
        self._best: Params = None  # not yet written
        self._best_known: Params = None
        self._started = self._logged = self._saved = time.monotonic()
        self._first_step = self._progress.step
        self._update = Update(self._progress.step, self._num_steps, None, None, None, None)

    def run(self) -> FitResult:
        progress, interrupted, pipeline = self._progress, False, None
        self._log.restart(progress.step)
        if progress.step == 0 and self._checkpoints is not None:
            self._save()  # from here on it can be resumed
        if progress.step < self._num_steps and not self._is_out_of_patience:
            with self._batches(progress.step) as batches:
                for batch in batches:
                    self._take(batch)
                    if self._is_over:
                        break
                    if interrupted := self._stop is not None and self._devices.any(self._stop()):
                        break
                self._settle()
                pipeline = batches.report
            self._save()
        scores = progress.best_score, progress.best_step
        return FitResult(self._best_params(), progress.step, *scores, interrupted, self._is_out_of_patience, pipeline)

    def _batches(self, first_step: int) -> TransferringStream[StepInputs]:
        devices, nodes, shapes = self._devices, self._nodes, self._loader.shapes
        return TransferringStream(
            self._loader.stream(first_step, self._num_steps),
            lambda loaded: devices.inputs(loaded, nodes, shapes),
            ahead=devices.transfers_ahead,
        )

    def _take(self, batch: Transferred[StepInputs]) -> None:
        """One step, and what is due after it."""
        progress, config = self._progress, self._config
        state, loss = self._step(self._state, batch.inputs, batch.step, self._dropout_key)
        self._settle()  # the step before; this one is under way
        self._state, self._in_flight = state, loss
        progress.step += 1
        progress.rows += batch.report.rows
        progress.misses += batch.report.misses
        epoch, rest = divmod(progress.step, self._loader.steps_per_epoch)
        if rest == 0 or progress.step % config.log_every == 0:
            self._write_line(batch.epoch)
        if rest == 0 and self._evaluate is not None and (epoch % config.eval_every == 0 or epoch == config.epochs):
            self._write_evaluation(batch.epoch, self._evaluate)
        is_due = rest == 0 and time.monotonic() - self._saved > _SECONDS_BETWEEN
        if is_due or progress.step % config.checkpoint_every == 0:
            self._save()
        if self._report is not None:
            self._report(self._updated())

    def _settle(self) -> None:
        """Waits for the step under way, so that there is never more than one, and one that waits."""
        if self._in_flight is not None:
            self._in_flight.block_until_ready()
            self._in_flight = None

    def _write_line(self, epoch: int) -> None:
        progress, metrics, now = self._progress, self._finite_metrics(), time.monotonic()
        rate = progress.rows / max(now - self._logged, 1e-9)
        hit_rate = 1 - progress.misses / max(progress.rows, 1)
        self._log.write(
            {
                "kind": "step",
                "step": progress.step,
                "epoch": epoch,
                "loss": metrics.loss,
                "score": metrics.score,
                "rows": progress.rows,
                "misses": progress.misses,
                "rows_per_second": rate,
            }
        )
        self._update = self._update._replace(loss=metrics.loss, rows_per_second=rate, hit_rate=hit_rate)
        self._state = self._state._replace(metrics=self._devices.replicated(Tally.zero()))
        progress.rows, progress.misses, self._logged = 0, 0, now

    def _finite_metrics(self) -> Tally:
        """Of the steps since the last line; ValueError where the loss has gone, so that no checkpoint of it replaces a sound one."""
        self._settle()
        metrics = jax.device_get(self._state.metrics)
        if not np.isfinite(metrics.loss_sum):
            raise ValueError(
                f"the loss is {metrics.loss_sum} by step {self._progress.step}: lower the learning rate, or look for "
                "features that are not finite"
            )
        return metrics

    def _write_evaluation(self, epoch: int, evaluate: Callable[[Params], float]) -> None:
        progress, start = self._progress, time.monotonic()
        score = float(evaluate(on_host(self._state.params)))
        is_best = progress.best_score is None or score > progress.best_score
        if is_best:
            progress.best_score, progress.best_step, progress.evaluations_since = score, progress.step, 0
            self._best = self._best_known = on_host(self._state.params)
        else:
            progress.evaluations_since += 1
        self._log.write(
            {"kind": "evaluation", "step": progress.step, "epoch": epoch, "score": score, "is_best": is_best}
        )
        seconds = time.monotonic() - start
        self._logged += seconds  # no part of training's rates
        self._started += seconds

    def _save(self) -> None:
        if self._checkpoints is None:
            return
        self._finite_metrics()
        if not self._devices.is_first:
            return
        state, progress = jax.device_get(self._state), dataclasses.asdict(self._progress)
        if not all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(state.params)):
            raise ValueError(f"parameters are not finite after step {self._progress.step}: lower the learning rate")
        if self._best is not None and self._progress.best_step is not None:
            self._checkpoints.save_best(self._progress.best_step, self._best, progress)
            self._best = None
        self._checkpoints.save(self._progress.step, state, progress)
        self._saved = time.monotonic()

    def _best_params(self) -> Params:
        if self._best_known is None and self._checkpoints is not None and self._progress.best_step is not None:
            self._best_known = self._checkpoints.restore_best(self._state.params)  # found before this process began
        return on_host(self._state.params) if self._best_known is None else self._best_known

    def _updated(self) -> Update:
        step = self._progress.step
        if step <= self._first_step + _STEPS_BEFORE_ETA:  # most of their time is compiling, and filling the pipeline
            self._started = time.monotonic()
            return self._update._replace(step=step, seconds_left=None)
        seconds = (time.monotonic() - self._started) / (step - self._first_step - _STEPS_BEFORE_ETA)
        return self._update._replace(step=step, seconds_left=seconds * (self._num_steps - step))

    def _restored(self, state: TrainState) -> tuple[TrainState, RunProgress]:
        restored = None if self._checkpoints is None else self._checkpoints.restore(state)
        if restored is None:
            return state, RunProgress()
        progress = RunProgress.restored(restored.progress, restored.step)
        return jax.tree.map(jax.numpy.asarray, restored.state), progress

    @property
    def _is_out_of_patience(self) -> bool:
        return 0 < self._config.patience <= self._progress.evaluations_since

    @property
    def _is_over(self) -> bool:
        return self._is_out_of_patience or self._progress.step >= self._num_steps


def on_host(params: Params) -> Params:
    """A copy: on CPU what JAX hands out may be the memory that the next step writes over."""
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), params)
