"""ggml's own products, x @ w.T with quantized w: the peer of the any-precision op.

    python -m benchmarks.ggml [--n 4096] [--k 4096] [--rows 1] [--threads 2] [--repeats 5]

Prints the time per product of every weight type in every kind of buffer that ggml's CPU backend offers for it: plain,
and re-laid-out for its faster kernels (`CPU_REPACK`, `AMX`). The first one named is what llama.cpp itself would take.
"""

import argparse
import ctypes
import math
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Self

import gguf
import numpy as np

from benchmarks.llamacpp_build import PeerError
from benchmarks.llamacpp_library import CPU_DEVICE, GgmlInitParams, huge_pages, last_errors, load
from benchmarks.timing import alternate, medians

WEIGHT_TYPES = ("Q3_K", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16")
STACK_BYTES = 5 << 28  # 1.3 GB: no cache holds any of it from one pass to the next
_SUCCESS = 0


def bytes_per_weight(weight_type: str) -> float:
    """Of a GGUF file; a buffer of another layout may take more (`GgmlMatmul.bytes_per_matrix`)."""
    weights, size_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[weight_type]]
    return size_bytes / weights


class GgmlMatmul:
    """A stack of distinct matrices [n, k] of one weight type, and one `run` that multiplies x [rows, k] by each in turn.

    Matrix `layer` is the first one, its rows rotated by `layer`: as far from the caches as random ones, and made
    in a fraction of the time. Weights are normal with variance 1 / k, x is standard normal, both from `seed`.

    weight_type:  one of WEIGHT_TYPES; k must be a multiple of its block (32, or 256 of the K types).
    buffer_type:  the name of one that `buffer_types` lists; None takes the first, as llama.cpp does.
    huge_pages:   ask for 2 MiB pages for all buffers; else the system's default pages.
    Memory: stack_bytes (rounded up to whole matrices), and two matrices in float32 while preparing.
    """

    def __init__(
        self,
        weight_type: str,
        n: int,
        k: int,
        rows: int = 1,
        *,
        threads: int = 2,
        stack_bytes: int = STACK_BYTES,
        buffer_type: str | None = None,
        huge_pages: bool = True,
        seed: int = 0,
    ) -> None:
        self._library = load()
        self.weight_type, self.n, self.k, self.rows = weight_type, n, k, rows
        self.num_matrices = max(2, math.ceil(stack_bytes / (n * k * bytes_per_weight(weight_type))))
        rng = np.random.default_rng(seed)
        self.packed = quantize(rng.standard_normal((n, k), np.float32) / np.float32(math.sqrt(k)), weight_type)
        self.x = rng.standard_normal((rows, k), np.float32)
        with ExitStack() as undo:
            self._prepare(undo, threads, buffer_type, huge_pages)
            self._undo = undo.pop_all()

    def _prepare(self, undo: ExitStack, threads: int, buffer_type: str | None, use_huge_pages: bool) -> None:
        library, device = self._library, _cpu()
        kind, self.buffer_type = _chosen_buffer_type(self.weight_type, self.n, self.k, self.rows, buffer_type)
        self._backend = _checked(library.ggml_backend_dev_init(device, None), "the CPU backend")
        undo.callback(library.ggml_backend_free, self._backend)
        library.ggml_backend_cpu_set_n_threads(self._backend, threads)

        weights = _context(undo, self.num_matrices)
        others = _context(undo, self.num_matrices + 1, graph_nodes=self.num_matrices + 1)
        matrices = [_tensor(weights, self.weight_type, self.n, self.k) for _ in range(self.num_matrices)]
        x = _tensor(others, "F32", self.rows, self.k)
        self._products = [library.ggml_mul_mat(others, matrix, x) for matrix in matrices]
        self._graph = library.ggml_new_graph_custom(others, self.num_matrices + 1, False)  # x is a leaf too
        for product in self._products:
            library.ggml_build_forward_expand(self._graph, product)

        with huge_pages(library, use_huge_pages):
            buffer = _allocate(undo, weights, kind)
            _allocate(undo, others, library.ggml_backend_dev_buffer_type(device))
        self.bytes_per_matrix = library.ggml_backend_buffer_get_size(buffer) / self.num_matrices
        _write(x, self.x)
        for layer, matrix in enumerate(matrices):
            _write(matrix, np.roll(self.packed, layer, axis=0))

    def run(self) -> None:
        """One pass: x times every matrix of the stack."""
        if (status := self._library.ggml_backend_graph_compute(self._backend, self._graph)) != _SUCCESS:
            raise PeerError(f"ggml's {self.weight_type} product failed with status {status}: {last_errors()}")

    def product(self, layer: int) -> np.ndarray:
        """What the last pass made of matrix `layer`, float32 [rows, n]."""
        y = np.empty((self.rows, self.n), np.float32)
        self._library.ggml_backend_tensor_get(self._products[layer], y.ctypes.data, 0, y.nbytes)
        return y

    def weights(self, layer: int) -> np.ndarray:
        """Matrix `layer` as ggml reads it, float32 [n, k], dequantized by the gguf package."""
        dense = gguf.quants.dequantize(self.packed, gguf.GGMLQuantizationType[self.weight_type])
        return np.roll(dense.astype(np.float32), layer, axis=0)

    def close(self) -> None:
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def quantize(weights: np.ndarray, weight_type: str) -> np.ndarray:
    """float32 [n, k] by ggml's quantizer, as uint8 [n, bytes of a row]."""
    n, k = weights.shape
    kind = _checked_type(weight_type, k)
    weights = np.ascontiguousarray(weights, np.float32)
    packed = np.empty((n, int(k * bytes_per_weight(weight_type))), np.uint8)
    load().ggml_quantize_chunk(int(kind), weights.ctypes.data, packed.ctypes.data, 0, n, k, None)
    return packed


def _checked_type(weight_type: str, k: int) -> gguf.GGMLQuantizationType:
    kind = gguf.GGMLQuantizationType[weight_type]
    if k % (block := gguf.GGML_QUANT_SIZES[kind][0]) != 0:
        raise ValueError(f"{weight_type} has blocks of {block} weights, and k = {k} is no multiple of that")
    return kind


def buffer_types(weight_type: str, n: int, k: int, rows: int = 1) -> list[str]:
    """Names of the kinds of buffer that ggml can multiply such a matrix from, in llama.cpp's order of preference."""
    return [name for _, name in _buffer_types(weight_type, n, k, rows)]


def _buffer_types(weight_type: str, n: int, k: int, rows: int) -> Iterator[tuple[int, str]]:
    library, device = load(), _cpu()
    for kind in (*_extra_buffer_types(), library.ggml_backend_dev_buffer_type(device)):
        with ExitStack() as undo:
            weights, others = _context(undo, 1), _context(undo, 2)
            matrix = _tensor(weights, weight_type, n, k)
            product = library.ggml_mul_mat(others, matrix, _tensor(others, "F32", rows, k))
            _allocate(undo, weights, kind)
            if library.ggml_backend_dev_supports_op(device, product):
                yield kind, library.ggml_backend_buft_name(kind).decode()


def _chosen_buffer_type(weight_type: str, n: int, k: int, rows: int, name: str | None) -> tuple[int, str]:
    offered = list(_buffer_types(weight_type, n, k, rows))
    for kind, offered_name in offered:
        if name in (None, offered_name):
            return kind, offered_name
    raise ValueError(
        f"buffer type {name!r} is not one of {[each for _, each in offered]}, which ggml offers for {weight_type}"
    )


def _extra_buffer_types() -> list[int]:
    """Those with kernels of their own: a list that the backend ends with a null pointer."""
    library = load()
    registry = library.ggml_backend_dev_backend_reg(_cpu())
    address = library.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    if not address:
        return []
    function = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)
    found: list[int] = []
    for kind in function(_cpu()):
        if not kind:
            break
        found.append(kind)
    return found


def _cpu() -> int:
    return _checked(load().ggml_backend_dev_by_type(CPU_DEVICE), "a CPU device")


def _context(undo: ExitStack, num_tensors: int, *, graph_nodes: int = 0) -> int:
    """Room for the descriptions of tensors (each product makes one too) and of a graph, not for their data."""
    library = load()
    size = 2 * num_tensors * library.ggml_tensor_overhead() + library.ggml_graph_overhead_custom(graph_nodes, False)
    context = _checked(library.ggml_init(GgmlInitParams(size, None, True)), "a context")
    undo.callback(library.ggml_free, context)
    return context


def _tensor(context: int, weight_type: str, n: int, k: int) -> int:
    return load().ggml_new_tensor_2d(context, int(_checked_type(weight_type, k)), k, n)


def _allocate(undo: ExitStack, context: int, kind: int) -> int:
    library = load()
    buffer = _checked(library.ggml_backend_alloc_ctx_tensors_from_buft(context, kind), "a buffer")
    undo.callback(library.ggml_backend_buffer_free, buffer)
    return buffer


def _write(tensor: int, contents: np.ndarray) -> None:
    contents = np.ascontiguousarray(contents)
    load().ggml_backend_tensor_set(tensor, contents.ctypes.data, 0, contents.nbytes)


def _checked(handle: Any, what: str) -> Any:
    if not handle:
        raise PeerError(f"ggml gave no {what.removeprefix('a ')}: {last_errors()}")
    return handle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=4096, help="outputs of a matrix")
    parser.add_argument("--k", type=int, default=4096, help="inputs of a matrix")
    parser.add_argument("--rows", type=int, default=1, help="rows of x")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="passes that count")
    parser.add_argument("--default-pages", action="store_true", help="the system's pages instead of huge ones")
    arguments = parser.parse_args()
    try:
        _print_times(arguments)
    except PeerError as error:
        raise SystemExit(f"error: {error}") from None


def _print_times(arguments: argparse.Namespace) -> None:
    n, k, rows = arguments.n, arguments.k, arguments.rows
    pages = "default" if arguments.default_pages else "huge"
    print(f"{n} x {k}, {rows} row(s) of x, {arguments.threads} threads, {pages} pages")
    print(f"{'type':6} {'buffer':12} {'bits':>6} {'us':>9} {'GB/s':>6} {'error':>8}")
    for weight_type in WEIGHT_TYPES:
        with ExitStack() as stack:
            peers = [
                stack.enter_context(
                    GgmlMatmul(
                        weight_type,
                        n,
                        k,
                        rows,
                        threads=arguments.threads,
                        buffer_type=buffer_type,
                        huge_pages=not arguments.default_pages,
                    )
                )
                for buffer_type in buffer_types(weight_type, n, k, rows)
            ]
            seconds = medians(alternate({peer.buffer_type: peer.run for peer in peers}, repeats=arguments.repeats))
            for peer in peers:
                _print_row(peer, seconds[peer.buffer_type] / peer.num_matrices)


def _print_row(peer: GgmlMatmul, seconds: float) -> None:
    print(
        f"{peer.weight_type:6} {peer.buffer_type:12} {8 * peer.bytes_per_matrix / peer.n / peer.k:6.3f} "
        f"{seconds * 1e6:9.1f} {peer.bytes_per_matrix / seconds / 1e9:6.1f} {relative_error(peer):8.1e}",
        flush=True,
    )


def relative_error(peer: GgmlMatmul, layer: int = 1) -> float:
    """L2 distance of the last pass's product from the same in float64, over the latter's norm: the activations' rounding."""
    exact = peer.x.astype(np.float64) @ peer.weights(layer).T.astype(np.float64)
    return float(np.linalg.norm(peer.product(layer) - exact) / np.linalg.norm(exact))


if __name__ == "__main__":
    main()
