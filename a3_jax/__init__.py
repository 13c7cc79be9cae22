"""Approximate attention by greedy candidate selection (A3, HPCA 2020), and a cost model of the accelerator that runs it."""

from a3_jax.attention.approximate import Fallback as Fallback
from a3_jax.attention.approximate import Info as Info
from a3_jax.attention.approximate import approx_attention as approx_attention
from a3_jax.attention.batched import approx_dot_product_attention as approx_dot_product_attention
from a3_jax.attention.exact import exact_attention as exact_attention
from a3_jax.attention.quality import Quality as Quality
from a3_jax.attention.quality import attention_quality as attention_quality
from a3_jax.attention.validation import validate as validate
from a3_jax.candidates.selection import Implementation as Implementation
from a3_jax.candidates.selection import greedy_scores as greedy_scores
from a3_jax.candidates.selection import select_candidates as select_candidates
from a3_jax.fixed_point.attention import fixed_point_attention as fixed_point_attention
from a3_jax.fixed_point.formats import AttentionFormat as AttentionFormat
from a3_jax.fixed_point.numbers import FixedPoint as FixedPoint
from a3_jax.metrics import bytes_touched as bytes_touched
from a3_jax.metrics import output_error as output_error
from a3_jax.metrics import softmax_mass as softmax_mass
from a3_jax.metrics import top_k_recall as top_k_recall
from a3_jax.post_scoring import select_post_scoring as select_post_scoring
from a3_jax.sorted_keys import SortedKeys as SortedKeys
from a3_jax.sorted_keys import sort_keys as sort_keys
