"""Strict JAX for every test: no implicit rank promotion, no silent x64, derandomized property tests."""

import os
from collections.abc import Iterator

import hypothesis
import jax
import pytest

# Programs here are tiny, and compiling them is most of the time. XLA's newer emitters take more than twice as long for them as the older,
# and so does dividing one among threads. Whoever sets XLA_FLAGS, to nothing even, has what it says; programs that tests start inherit it.
# A jaxlib that does not know one of them any more says so and ends.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")

jax.config.update("jax_numpy_rank_promotion", "raise")
hypothesis.settings.register_profile("bandwise", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("bandwise")


@pytest.fixture(scope="module", autouse=True)
def quick_compilation() -> Iterator[None]:
    """Optimizations are left out.

    In this process, and in those whose environment says so (`QUICK` of `ginex_jax/small_runs.py`).
    """
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    # Every program that is kept costs more than a megabyte, and those that come after it take up to twice as long to compile.
    jax.clear_caches()
