"""Quantization of one matrix: optimal seed, incremental upscaling, codes optimised jointly if asked for, packing.

Any-Precision LLM (Park et al., ICML 2024), section 3; what differs from the authors' code, and why, is in docs/anyprec.md.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float16, Float64, UInt8

from anyprec_jax import bitplanes
from anyprec_jax.array import AnyPrecArray
from anyprec_jax.config import QuantizeConfig
from anyprec_jax.joint_codes import JointSettings, optimise_codes
from anyprec_jax.row_threads import for_rows

_WEIGHTS_AT_ONCE = 1 << 18  # rows are independent; this many weights take 20 MB while they are worked on
FLOAT16_OVERFLOW = 65520.0  # the smallest magnitude that rounds to infinity


def quantize(
    weights: Float[np.ndarray | jax.Array, "n k"],
    sensitivity: Float[np.ndarray | jax.Array, "n k"],
    config: QuantizeConfig,
) -> AnyPrecArray:
    """Quantizes a matrix once, to be read at any precision from `config.seed_precision` to `config.parent_precision`.

    Every row is clustered by itself: the seed is the weighted k-means optimum, and each further bit splits every cluster in two at
    the optimal place. Codebooks hold the weighted means. Equal weights of a row get equal codes. Deterministic, whatever the number
    of threads.

    Args:
      weights: (outputs, inputs), finite. Clustered as float32.
      sensitivity: how much each weight matters, the diagonal Fisher information say; finite, at least 0. Only ratios within a row
        count; a row of zeros, and any clusters of zeros, are treated as if all their weights mattered alike.
      config: the precisions.

    Raises:
      ValueError: if the shapes differ or are empty, a weight is NaN or infinite, a sensitivity is NaN, infinite or negative, or a
        centroid exceeds float16's range; row and column are named.

    Time O(n * k * (2**seed * log k + parent)) on all cores; memory 2 * n * k bytes besides arguments and result. The first call in a
    new environment compiles for some seconds.
    """
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and an error below
        weights, sensitivity = np.asarray(weights, np.float32), np.asarray(sensitivity, np.float32)
    _check(weights, sensitivity)
    codes, codebooks = _cluster(weights, sensitivity, config)
    return _array(codes, codebooks, config)


def quantize_jointly(
    weights: Float[np.ndarray | jax.Array, "n k"],
    moment: Float[np.ndarray | jax.Array, "k k"],
    config: QuantizeConfig,
    settings: JointSettings | None = None,
) -> AnyPrecArray:
    """Quantizes a matrix for what its rows make of their inputs, all precisions at once.

    Starts from what `quantize` makes with the moment's diagonal as the sensitivity of every row, and optimises codes and codebooks
    jointly (`joint_codes.optimise_codes`). Equal weights of a row may get different codes, and codebooks need not ascend. Deterministic,
    whatever the number of threads.

    Args:
      weights: (outputs, inputs), finite. Computed with as float32.
      moment: the guided second moment of the inputs, symmetric, as `sensitivity` measures it; its scale does not count.
      config: the precisions.
      settings: of the optimisation; the defaults, unless given.

    Raises:
      ValueError: as `quantize` and `optimise_codes`.

    Time as `quantize`, and some 5 to 10 * n * k**2 operations, on all cores.
    """
    with np.errstate(over="ignore"):
        weights, moment = np.asarray(weights, np.float32), np.asarray(moment, np.float32)
    if (
        moment.ndim != 2
        or moment.shape[0] != moment.shape[1]
        or weights.ndim != 2
        or moment.shape[0] != weights.shape[1]
    ):
        raise ValueError(
            f"weights [n, k] need the second moment [k, k] of their inputs, got {weights.shape} and {moment.shape}"
        )
    sensitivity = np.broadcast_to(np.diag(moment), weights.shape)
    _check(weights, sensitivity)
    codes, codebooks = _cluster(weights, sensitivity, config)
    joint = optimise_codes(weights, codes, codebooks, moment, settings)
    return _array(joint.codes, {w: _to_float16(book) for w, book in joint.codebooks.items()}, config)


def _array(
    codes: UInt8[np.ndarray, "n k"], codebooks: dict[int, Float16[np.ndarray, "n _"]], config: QuantizeConfig
) -> AnyPrecArray:
    return AnyPrecArray(
        bitplanes=bitplanes.pack(jnp.asarray(codes), precision=config.parent_precision),
        codebooks={w: jnp.asarray(codebook) for w, codebook in codebooks.items()},
        seed_precision=config.seed_precision,
        parent_precision=config.parent_precision,
        k=codes.shape[1],
    )


def _check(weights: Float[np.ndarray, "..."], sensitivity: Float[np.ndarray, "..."]) -> None:
    if weights.ndim != 2 or weights.size == 0 or sensitivity.shape != weights.shape:
        raise ValueError(
            f"weights and sensitivity must be matrices of one shape [n, k], got {weights.shape} and {sensitivity.shape}"
        )
    if not np.isfinite(weights).all():
        row, column = np.argwhere(~np.isfinite(weights))[0]
        raise ValueError(f"weights must be finite, got {weights[row, column]} at row {row}, column {column}")
    if not (np.isfinite(sensitivity) & (sensitivity >= 0)).all():
        row, column = np.argwhere(~(np.isfinite(sensitivity) & (sensitivity >= 0)))[0]
        raise ValueError(
            f"sensitivity must be finite and at least 0, got {sensitivity[row, column]} at row {row}, column {column}"
        )


def _cluster(
    weights: Float[np.ndarray, "n k"], sensitivity: Float[np.ndarray, "n k"], config: QuantizeConfig
) -> tuple[UInt8[np.ndarray, "n k"], dict[int, Float16[np.ndarray, "n _"]]]:
    """Codes at the parent precision, and the codebooks of every precision: every row by itself."""
    n, k = weights.shape
    codes = np.empty((n, k), np.uint8)
    codebooks = {w: np.empty((n, 2**w), np.float16) for w in config.precisions}

    def work(rows: slice) -> None:
        codes[rows], centroids = _cluster_rows(weights[rows], sensitivity[rows], config)
        for w in config.precisions:
            codebooks[w][rows] = _to_float16(centroids[w], first_row=rows.start)

    for_rows(work, num_rows=n, rows_at_once=max(1, _WEIGHTS_AT_ONCE // k))
    return codes, codebooks


def _cluster_rows(
    weights: Float[np.ndarray, "n k"], sensitivity: Float[np.ndarray, "n k"], config: QuantizeConfig
) -> tuple[UInt8[np.ndarray, "n k"], dict[int, Float64[np.ndarray, "n _"]]]:
    from anyprec_jax import kmeans1d, upscale

    rows = kmeans1d.sort_rows(weights, sensitivity)
    clusters = kmeans1d.seed_clusters(rows, precision=config.seed_precision)
    centroids = {config.seed_precision: clusters.centroids}
    for w in config.precisions[1:]:
        clusters = upscale.upscale(rows, clusters)
        centroids[w] = clusters.centroids
    return kmeans1d.codes(rows, clusters), centroids


def _to_float16(centroids: Float[np.ndarray, "n entries"], *, first_row: int = 0) -> Float16[np.ndarray, "n entries"]:
    overflows = np.abs(centroids) >= FLOAT16_OVERFLOW
    if overflows.any():
        row, code = np.argwhere(overflows)[0]
        raise ValueError(
            f"codebooks are float16, up to 65504, but row {first_row + row} needs {centroids[row, code]:.6g}: scale the weights down"
        )
    return centroids.astype(np.float16)
