"""llama.cpp's libraries through ctypes: the few functions the benchmarks call, and nothing of what they mean."""

import collections
import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

from benchmarks.llamacpp_build import PEERS, PeerError, stamp, stamp_path
from benchmarks.llamacpp_patches import HUGE_PAGES_SYMBOL

CPU_DEVICE = 0  # of enum ggml_backend_dev_type
_LOG = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)


class GgmlInitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


class Batch(ctypes.Structure):
    """struct llama_batch."""

    _fields_ = (
        ("n_tokens", c_int32),
        *((name, c_void_p) for name in ("token", "embd", "pos", "n_seq_id", "seq_id", "logits")),
    )


class ModelParams(ctypes.Structure):
    """struct llama_model_params."""

    _fields_ = (
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        *((name, c_int32) for name in ("n_gpu_layers", "split_mode", "load_mode", "lazy_mode", "main_gpu")),
        *((name, c_void_p) for name in ("tensor_split", "progress_callback", "user_data", "kv_overrides")),
        *(
            (name, c_bool)
            for name in ("vocab_only", "check_tensors", "use_extra_bufts", "no_host", "no_alloc", "load_mtp")
        ),
    )


class ContextParams(ctypes.Structure):
    """struct llama_context_params."""

    _fields_ = (
        *((name, c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((name, c_uint32) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
        *((name, c_int32) for name in ("n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type")),
        *((name, c_int32) for name in ("pooling_type", "attention_type", "flash_attn_type")),
        *((name, c_float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor")),
        *((name, c_float) for name in ("yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        *((name, c_void_p) for name in ("cb_eval", "cb_eval_user_data")),
        *((name, c_int32) for name in ("type_k", "type_v")),
        *((name, c_void_p) for name in ("abort_callback", "abort_callback_data")),
        *((name, c_bool) for name in ("embeddings", "offload_kqv", "no_perf", "op_offload", "swa_full", "kv_unified")),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    )


class ImportanceData(ctypes.Structure):
    """struct llama_model_imatrix_data; an array of them ends with one whose name is null."""

    _fields_ = (("name", c_char_p), ("data", POINTER(c_float)), ("size", c_size_t))


class QuantizeParams(ctypes.Structure):
    """struct llama_model_quantize_params."""

    _fields_ = (
        *((name, c_int32) for name in ("nthread", "ftype", "output_tensor_type", "token_embedding_type")),
        *((name, c_bool) for name in ("allow_requantize", "quantize_output_tensor", "only_copy")),
        *((name, c_bool) for name in ("pure", "keep_split", "dry_run")),
        *((name, c_void_p) for name in ("imatrix", "kv_overrides", "tt_overrides", "prune_layers")),
        ("max_buf_size", c_size_t),
    )


# Function -> what it returns, then what it takes.
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "ggml_backend_alloc_buffer": (c_void_p, c_void_p, c_size_t),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, c_void_p, c_void_p),
    "ggml_backend_buffer_free": (None, c_void_p),
    "ggml_backend_buffer_get_base": (c_void_p, c_void_p),
    "ggml_backend_buffer_get_size": (c_size_t, c_void_p),
    "ggml_backend_buft_name": (c_char_p, c_void_p),
    "ggml_backend_cpu_set_n_threads": (None, c_void_p, c_int),
    "ggml_backend_dev_backend_reg": (c_void_p, c_void_p),
    "ggml_backend_dev_buffer_type": (c_void_p, c_void_p),
    "ggml_backend_dev_by_type": (c_void_p, c_int),
    "ggml_backend_dev_init": (c_void_p, c_void_p, c_char_p),
    "ggml_backend_dev_supports_op": (c_bool, c_void_p, c_void_p),
    "ggml_backend_free": (None, c_void_p),
    "ggml_backend_graph_compute": (c_int, c_void_p, c_void_p),
    "ggml_backend_reg_get_proc_address": (c_void_p, c_void_p, c_char_p),
    "ggml_backend_tensor_get": (None, c_void_p, c_void_p, c_size_t, c_size_t),
    "ggml_backend_tensor_set": (None, c_void_p, c_void_p, c_size_t, c_size_t),
    "ggml_build_forward_expand": (None, c_void_p, c_void_p),
    "ggml_free": (None, c_void_p),
    "ggml_graph_overhead_custom": (c_size_t, c_size_t, c_bool),
    "ggml_init": (c_void_p, GgmlInitParams),
    "ggml_log_set": (None, _LOG, c_void_p),
    "ggml_mul_mat": (c_void_p, c_void_p, c_void_p, c_void_p),
    "ggml_new_graph_custom": (c_void_p, c_void_p, c_size_t, c_bool),
    "ggml_new_tensor_2d": (c_void_p, c_void_p, c_int, c_int64, c_int64),
    "ggml_quantize_chunk": (c_size_t, c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p),
    "ggml_tensor_overhead": (c_size_t,),
    "llama_backend_init": (None,),
    "llama_batch_get_one": (Batch, POINTER(c_int32), c_int32),
    "llama_context_default_params": (ContextParams,),
    "llama_decode": (c_int32, c_void_p, Batch),
    "llama_free": (None, c_void_p),
    "llama_get_logits_ith": (POINTER(c_float), c_void_p, c_int32),
    "llama_get_memory": (c_void_p, c_void_p),
    "llama_init_from_model": (c_void_p, c_void_p, ContextParams),
    "llama_log_set": (None, _LOG, c_void_p),
    "llama_memory_seq_rm": (c_bool, c_void_p, c_int32, c_int32, c_int32),
    "llama_model_default_params": (ModelParams,),
    "llama_model_free": (None, c_void_p),
    "llama_model_get_vocab": (c_void_p, c_void_p),
    "llama_model_load_from_file": (c_void_p, c_char_p, ModelParams),
    "llama_model_quantize": (c_uint32, c_char_p, c_char_p, POINTER(QuantizeParams)),
    "llama_model_quantize_default_params": (QuantizeParams,),
    "llama_vocab_n_tokens": (c_int32, c_void_p),
}
_ERROR_LEVEL = 4  # of enum ggml_log_level
_errors: collections.deque[str] = collections.deque(maxlen=4)


@_LOG
def _keep_errors(level: int, text: bytes, _: object) -> None:
    if level == _ERROR_LEVEL:
        _errors.append(text.decode(errors="replace").strip())


def why_unavailable(peers: Path = PEERS) -> str | None:
    """Why there is nothing to compare with, or None."""
    if not stamp_path(peers).exists():
        return "llama.cpp is not built: run `make bench-peers`"
    if stamp_path(peers).read_text(encoding="utf-8") != stamp():
        return "llama.cpp was built by another recipe or for another processor: run `make bench-peers` again"
    return None


@functools.cache
def load(peers: Path = PEERS) -> ctypes.CDLL:
    """libllama, through which ggml's functions are found too; their errors are kept for `last_errors`, the rest is dropped."""
    if (reason := why_unavailable(peers)) is not None:
        raise PeerError(reason)
    try:
        library = ctypes.CDLL(str(peers / "build" / "bin" / "libllama.so"))
        for name, (result, *arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise PeerError(
            f"llama.cpp does not load ({error}): remove {peers / 'build.stamp'} and run `make bench-peers`"
        ) from error
    library.ggml_log_set(_keep_errors, None)
    library.llama_log_set(_keep_errors, None)
    library.llama_backend_init()
    return library


def last_errors() -> str:
    """What the library logged as errors lately."""
    return "; ".join(_errors) or "no error was logged"


@contextmanager
def huge_pages(library: ctypes.CDLL, wanted: bool) -> Iterator[None]:
    """While open, buffers that ggml allocates ask for 2 MiB pages, or for the system's default."""
    switch = c_int.in_dll(library, HUGE_PAGES_SYMBOL)
    before, switch.value = switch.value, int(wanted)
    try:
        yield
    finally:
        switch.value = before
