"""Quantizes a whole model, layer by layer, and survives being killed at any moment.

Work in progress lives in one hidden folder beside the destination (`quantization_folder`). The same command run again continues from
there and ends with the same arrays; the artefact itself appears in one rename.

Several processes (`jax.distributed`) share one job where they see the same folder: sequences and layers are dealt out, the first process
adds up and writes the artefact.
"""

import dataclasses
import functools
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from anyprec_jax import affine, sensitivity
from anyprec_jax.allocation import matrix_errors, scaled
from anyprec_jax.array import AnyPrecArray, Matrix
from anyprec_jax.calibration import mixed_windows, read_text
from anyprec_jax.checkpoint import load
from anyprec_jax.checkpoint.orbax import save_artefact
from anyprec_jax.checkpoint.source import CodebookKind
from anyprec_jax.compaction import compact
from anyprec_jax.config import QuantizeConfig
from anyprec_jax.joint_codes import JointSettings
from anyprec_jax.layer_divergence import Divergence, divergence_of_layers
from anyprec_jax.models.families import parameter_shapes
from anyprec_jax.models.fusion import LINEARS, linears
from anyprec_jax.models.model import Model, with_affine_head
from anyprec_jax.models.precision_map import QuantizationErrors
from anyprec_jax.processes import meet, processes, wait_for
from anyprec_jax.quantization import FLOAT16_OVERFLOW, quantize, quantize_jointly
from anyprec_jax.quantization_folder import (
    is_finished,
    last_sum,
    layer_file,
    run_folder,
    save_layer,
    save_sum,
    staging,
    sum_folder,
)

_SECONDS_BETWEEN_SAVES = 60.0

Progress = Callable[[str, int, int], None]  # (phase, steps done, steps in all)
Quality: TypeAlias = Literal["fast", "best"]
_KIND: dict[Quality, sensitivity.Kind] = {"fast": "fisher", "best": "moment"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """Which text the sensitivity is measured on: one file or several, of which as many windows each are taken."""

    text: Path | tuple[Path, ...]
    num_sequences: int = 100
    sequence_length: int = 512
    seed: int = 0

    @property
    def texts(self) -> tuple[Path, ...]:
        """The files, however many."""
        return (self.text,) if isinstance(self.text, Path) else tuple(self.text)


def quantize_model(
    source: Path,
    out: Path,
    config: QuantizeConfig,
    *,
    calibration: Calibration | None,
    quality: Quality | None = None,
    joint: JointSettings | None = None,
    head_precision: int | None = affine.BITS,
    codebooks: CodebookKind = "float16",
    progress: Progress = lambda phase, done, total: None,
) -> None:
    """Quantizes every linear of the decoder layers, and embedding and head, and writes an artefact.

    With a calibration the artefact also says what each precision costs each linear (`allocation.quantization_errors`), so that it can be
    read at fractional precisions.

    Args:
      source: a Hugging Face folder or a GGUF file.
      out: the artefact; must not exist, unless it is the finished result of this very command, which is then left as it is.
      config: precisions.
      calibration: the text to measure sensitivity on; None weighs all weights alike.
      quality: "fast" clusters every weight by itself (`quantize`, the paper's way); "best" optimises the codes of all precisions for the
        outputs of their row (`quantize_jointly`), which needs a calibration. None is best with a calibration, and fast without.
      joint: settings of "best"; the defaults, unless given.
      head_precision: 8 stores the embedding, and the output head where that is another matrix, as affine rows; None leaves them
        as they are.
      codebooks: "compact" stores those of a row in 92 bytes for 3 to 8 bits instead of 1,008 (`compaction.compact`).
      progress: told (phase, steps done, steps in all) after every sequence and every layer, of this process where there are several.

    With several processes, each makes this call with the same arguments, and it returns in all when the artefact is there. Without a
    calibration its arrays are those of one process, bit for bit; with one, so many sums of sensitivity are added up as there are processes,
    which round otherwise.

    Raises:
      FileExistsError: something else is at `out`, or an unfinished run with other settings.
      ValueError: unusable source or text; NaN or infinite weights (layer, row and column are named); another `head_precision`,
        `quality` or kind of `codebooks`, or "best" without a calibration.
      OSError: not enough room, or no permission; another process has failed.

    Memory: of each process, the weights in float32, their sensitivity in float32 (as much again for "fast"; for "best" k / n of that for
    every linear), and the activations of one sequence.
    """
    quality, joint = _checked_quality(quality, joint, calibration)
    if head_precision not in (affine.BITS, None):
        raise ValueError(f"head_precision must be {affine.BITS} or None, got {head_precision!r}")
    if codebooks not in get_args(CodebookKind):
        raise ValueError(f"codebooks must be one of {', '.join(get_args(CodebookKind))}, got {codebooks!r}")
    model = load(source)
    _require_quantizable(model, source)
    _require_storable(model, source)
    windows = None if calibration is None else _windows(model, calibration)
    provenance = _provenance(source, config, quality, joint, head_precision, calibration, windows)
    if codebooks != "float16":
        provenance["quantization"]["codebooks"] = codebooks
    was_finished = is_finished(out, provenance)
    meet("destination seen")  # before anybody may have written it
    if was_finished:
        shutil.rmtree(staging(out), ignore_errors=True)
        return
    with run_folder(out, provenance, _bytes_needed(model, config, quality)) as folder:
        scores = None if windows is None else _measure_together(model, windows, _KIND[quality], folder, progress)
        _quantize_layers(model, scores, _KIND[quality], windows, config, joint, folder, progress)
        if not processes().is_first:
            wait_for([out], folder)
            return
        wait_for([layer_file(folder, layer) for layer in range(model.config.num_layers)], folder)
        unrouted = unrouted_experts(scores)
        del scores  # it and the plain weights go before their successors come: the peak is in the middle, not here
        model = _without_linears(model)
        quantized = _assemble(model, config, folder, codebooks, progress)
        if head_precision is not None:
            quantized = with_affine_head(quantized)
        found = {"unrouted_experts": unrouted} if model.config.num_experts else {}
        save_artefact(out, quantized, provenance=provenance | found)
        shutil.rmtree(folder)


def _checked_quality(
    quality: Quality | None, joint: JointSettings | None, calibration: Calibration | None
) -> tuple[Quality, JointSettings | None]:
    """The quality, and the settings of "best"."""
    if quality is None:
        quality = "fast" if calibration is None else "best"
    if quality not in _KIND:
        raise ValueError(f"quality must be one of {', '.join(_KIND)}, got {quality!r}")
    if quality == "best" and calibration is None:
        raise ValueError("the best quality needs a calibration text: give one, or choose fast")
    if quality == "fast" and joint is not None:
        raise ValueError("settings of the joint optimisation are given, but the fast quality has none")
    return quality, (joint or JointSettings()) if quality == "best" else None


def _require_quantizable(model: Model, source: Path) -> None:
    if any(isinstance(leaf, Matrix) for leaf in linears(model.params["layers"]).values()):
        raise ValueError(f"{source} is quantized already: give the model it was made from")
    for name, leaf in linears(model.params["layers"]).items():
        for where, weights in _matrices(leaf):
            if not np.isfinite(weights).all():
                row, column = np.argwhere(~np.isfinite(weights))[0]
                raise ValueError(f"{source}: {name} of {where} is {weights[row, column]} at row {row}, column {column}")


def _require_storable(model: Model, source: Path) -> None:
    """What would otherwise fail after hours, or not at all: weights beyond the codebooks' range, a NaN outside the linears."""
    quantized = linears(model.params["layers"])
    for name, leaf in quantized.items():
        for where, weights in _matrices(leaf):
            if (beyond := np.abs(weights) >= FLOAT16_OVERFLOW).any():
                row, column = np.argwhere(beyond)[0]
                raise ValueError(
                    f"{source}: {name} of {where} is {weights[row, column]} at row {row}, column {column}: codebooks "
                    "are float16, up to 65504"
                )
    for name, leaf in (model.params | model.params["layers"]).items():
        if name not in ("layers", *quantized) and not (finite := np.isfinite(np.asarray(leaf))).all():
            place = np.argwhere(~finite)[0].tolist()
            raise ValueError(f"{source}: {name} is {np.asarray(leaf)[tuple(place)]} at {place}")


def _matrices(leaf: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The matrices of a linear in all layers, and where each is, in words."""
    stack = np.asarray(leaf)
    for index in np.ndindex(stack.shape[:-2]):
        yield " expert ".join(["layer " + str(index[0]), *map(str, index[1:])]), stack[index]


def _windows(model: Model, calibration: Calibration) -> np.ndarray:
    if model.tokenizer is None:
        raise ValueError("calibration needs a tokenizer, and the model has none (tokenizer.json): use uniform weights")
    encode = model.tokenizer.encode
    texts = [np.asarray(encode(read_text(file), special_tokens=False), np.int32) for file in calibration.texts]
    windows = mixed_windows(
        texts,
        num_sequences=calibration.num_sequences,
        sequence_length=calibration.sequence_length,
        seed=calibration.seed,
    )
    if calibration.sequence_length > model.config.max_position_embeddings:
        raise ValueError(
            f"sequences of {calibration.sequence_length} tokens exceed the model's context of "
            f"{model.config.max_position_embeddings}: choose shorter ones"
        )
    return windows


def _provenance(
    source: Path,
    config: QuantizeConfig,
    quality: Quality,
    joint: JointSettings | None,
    head_precision: int | None,
    calibration: Calibration | None,
    windows: np.ndarray | None,
) -> dict[str, Any]:
    """What the result depends on, by content and not by name: equal provenance means equal arrays on the same machine."""
    described: dict[str, Any] = {
        "source": {"name": source.resolve().name, "sha256": _digest(source)},
        "quantization": dataclasses.asdict(config) | {"quality": quality, "head_precision": head_precision},
        "calibration": None,
    }
    if joint is not None:
        weights = joint.weights(config.seed_precision, config.parent_precision)
        described["quantization"]["joint"] = dataclasses.asdict(joint) | {
            "importance": {str(w): weight for w, weight in weights.items()}
        }
    if calibration is not None and windows is not None:
        described["calibration"] = {
            "texts": [file.name for file in calibration.texts],
            "num_sequences": calibration.num_sequences,
            "sequence_length": calibration.sequence_length,
            "seed": calibration.seed,
            "tokens_sha256": hashlib.sha256(windows.tobytes()).hexdigest(),
        }
        if (count := processes().count) > 1:
            described["calibration"]["processes"] = count
    return described


def _digest(source: Path) -> str:
    """SHA-256 of a file, or of a folder's files in the order of their names."""
    total = hashlib.sha256()
    for file in [source] if source.is_file() else sorted(f for f in source.iterdir() if f.is_file()):
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def _bytes_needed(model: Model, config: QuantizeConfig, quality: Quality) -> int:
    """Upper bound of what the run and its result take: two sums of sensitivity (and two of each process), the layers, and the artefact."""
    weights = linears(model.params["layers"]).values()
    summed = sensitivity.nbytes(model.params, _KIND[quality])
    rows = sum(leaf.size // leaf.shape[-1] for leaf in weights)
    codebooks = rows * 2 * sum(2**w for w in range(config.seed_precision, config.parent_precision + 1))
    planes = (
        sum(leaf.size // leaf.shape[-1] * (-(-leaf.shape[-1] // 32) * 4) for leaf in weights) * config.parent_precision
    )
    rest = sum(leaf.nbytes for name, leaf in model.params.items() if name != "layers")
    sums = 2 if processes().count == 1 else 2 + 2 * processes().count
    return sums * summed + 2 * (planes + codebooks) + rest


def _measure_together(
    model: Model, windows: np.ndarray, kind: sensitivity.Kind, folder: Path, progress: Progress
) -> dict[str, np.ndarray]:
    """The sensitivity summed over all windows, of which each process measures as many; memory-mapped."""
    number, count = processes()
    if count == 1:
        return _measure_sensitivity(model, windows, kind, folder, progress)
    shares = [windows[i::count] for i in range(min(count, len(windows)))]
    folders = [folder / f"share-{i:05d}" for i in range(len(shares))]
    whole = sum_folder(folder, len(windows))
    if number < len(shares) and not whole.exists():
        folders[number].mkdir(exist_ok=True)
        _measure_sensitivity(model, shares[number], kind, folders[number], progress)
    if number == 0 and not whole.exists():
        sums = [sum_folder(place, len(share)) for place, share in zip(folders, shares, strict=True)]
        wait_for(sums, folder)
        names = linears(model.params["layers"])
        total = {name: functools.reduce(np.add, (np.load(part / f"{name}.npy") for part in sums)) for name in names}
        save_sum(folder, total, len(windows))
    wait_for([whole], folder)
    return _measure_sensitivity(model, windows, kind, folder, progress)  # which finds it done


def _measure_sensitivity(
    model: Model, windows: np.ndarray, kind: sensitivity.Kind, folder: Path, progress: Progress
) -> dict[str, np.ndarray]:
    """The sensitivity summed over all windows, continued from the last sum on disk; memory-mapped."""
    done, total = last_sum(folder, model, kind)
    progress("sensitivity", done, len(windows))
    if done < len(windows):
        accumulate = sensitivity.sequence_accumulator(model.params, model.config, (kind,))
        saved_at = time.monotonic()
        while done < len(windows):
            started = time.monotonic()
            accumulate(jnp.asarray(windows[done]), total)
            done += 1
            now = time.monotonic()
            if done == len(windows) or now - saved_at + (now - started) >= _SECONDS_BETWEEN_SAVES:
                save_sum(folder, total, done)
                saved_at = time.monotonic()
            progress("sensitivity", done, len(windows))
    del total
    names = linears(model.params["layers"])
    return {name: np.load(sum_folder(folder, done) / f"{name}.npy", mmap_mode="r") for name in names}


def _quantize_layers(
    model: Model,
    scores: dict[str, np.ndarray] | None,
    kind: sensitivity.Kind,
    windows: np.ndarray | None,
    config: QuantizeConfig,
    joint: JointSettings | None,
    folder: Path,
    progress: Progress,
) -> None:
    layers = {name: np.asarray(leaf) for name, leaf in linears(model.params["layers"]).items()}
    divergence: Divergence | None = None
    number, count = processes()
    for layer in range(number, model.config.num_layers, count):
        file = layer_file(folder, layer)
        if not file.exists():
            if windows is not None and divergence is None:
                divergence = divergence_of_layers(
                    model.params, model.config, windows[[0, -1]]
                )  # of two texts, if there are
            arrays: dict[str, np.ndarray] = {}
            matrices: dict[str, AnyPrecArray] = {}
            for name, leaf in layers.items():
                weights = np.asarray(leaf[layer], np.float32)
                score = np.ones_like(weights) if scores is None else np.asarray(scores[name][layer])
                try:
                    matrix = _quantized(weights, score, config, joint)
                except ValueError as error:
                    raise ValueError(f"{name} of layer {layer}: {error}") from error
                matrices[name] = matrix
                arrays[f"{name}/bitplanes"] = np.asarray(matrix.bitplanes)
                arrays |= {f"{name}/codebooks/{w}": np.asarray(book) for w, book in matrix.codebooks.items()}
                if scores is not None:  # without, the errors of different linears are on no common scale
                    arrays[f"{name}/errors"] = matrix_errors(weights, matrix, score, kind=kind)
            if divergence is not None:
                arrays["divergence"] = np.asarray(divergence(layer, matrices))
            save_layer(file, arrays)
        progress("quantization", layer + 1, model.config.num_layers)


def _quantized(
    weights: np.ndarray, score: np.ndarray, config: QuantizeConfig, joint: JointSettings | None
) -> AnyPrecArray:
    """One linear of a layer: a matrix, or the experts', [experts, n, k] with a score each.

    An expert that calibration never routed to has a score of zeros, which weigh all its weights alike.
    """
    if weights.ndim == 3:
        experts = [_quantized(*expert, config, joint) for expert in zip(weights, score, strict=True)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *experts)
    if joint is None:
        return quantize(weights, score, config)
    return quantize_jointly(weights, score, config, joint)


def unrouted_experts(scores: dict[str, np.ndarray] | None) -> list[list[int]]:
    """[layer, expert] of every expert that no token of the calibration was routed to: its weights were weighed alike."""
    down = None if scores is None else scores.get("down_proj")
    if down is None or down.ndim != 4:
        return []
    return [[layer, expert] for layer, expert in np.ndindex(down.shape[:2]) if not np.any(down[layer, expert])]


def _without_linears(model: Model) -> Model:
    layers = {
        name: leaf for name, leaf in model.params["layers"].items() if name not in linears(model.params["layers"])
    }
    return dataclasses.replace(model, params=model.params | {"layers": layers})


def _assemble(model: Model, config: QuantizeConfig, folder: Path, codebooks: CodebookKind, progress: Progress) -> Model:
    """The model with stacks of the finished layers for its linears."""
    layers = dict(model.params["layers"])
    errors: dict[str, np.ndarray] = {}
    shapes = parameter_shapes(model.config)
    precisions = range(config.seed_precision, config.parent_precision + 1)
    files = [np.load(layer_file(folder, layer)) for layer in range(model.config.num_layers)]
    names = [name for name in LINEARS if f"layers/{name}" in shapes]
    for done, name in enumerate(names, start=1):
        layers[name] = AnyPrecArray(
            bitplanes=jnp.asarray(np.stack([file[f"{name}/bitplanes"] for file in files])),
            codebooks={w: jnp.asarray(np.stack([file[f"{name}/codebooks/{w}"] for file in files])) for w in precisions},
            seed_precision=config.seed_precision,
            parent_precision=config.parent_precision,
            k=shapes[f"layers/{name}"][-1],
        )
        if all("divergence" in file for file in files):
            errors[name] = np.stack([file[f"{name}/errors"] for file in files])
        if codebooks == "compact":
            layers[name] = compact(layers[name])
            progress("codebooks", done, len(names))
    table = None
    divergences = [float(file["divergence"]) for file in files if "divergence" in file]
    if errors and np.isfinite(divergences).all():  # else no table at all: bits shared out by a wrong one would be worse
        table = scaled(QuantizationErrors(tuple(precisions), errors), divergences)
    for file in files:
        file.close()
    return dataclasses.replace(model, params=model.params | {"layers": layers}, errors=table)
