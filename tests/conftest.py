"""Strict JAX for every test: no implicit rank promotion, no silent x64, derandomized property tests."""

import hypothesis
import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
hypothesis.settings.register_profile("bandwise", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("bandwise")
