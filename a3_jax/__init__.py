"""Approximate attention by greedy candidate selection (A3, HPCA 2020), and a cost model of the accelerator that runs it."""

from a3_jax.candidates.selection import greedy_scores as greedy_scores
from a3_jax.candidates.selection import select_candidates as select_candidates
from a3_jax.sorted_keys import SortedKeys as SortedKeys
from a3_jax.sorted_keys import sort_keys as sort_keys
