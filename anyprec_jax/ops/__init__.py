"""The matrix products, any-precision and affine: one operation, one oracle (`reference`), several implementations."""

from anyprec_jax.ops.affine import matmul_affine
from anyprec_jax.ops.dispatch import Implementation, dequantize_layer, flat_stack, matmul, matmul_mixed
from anyprec_jax.ops.reference import codes, dequantize

__all__ = [
    "Implementation",
    "codes",
    "dequantize",
    "dequantize_layer",
    "flat_stack",
    "matmul",
    "matmul_affine",
    "matmul_mixed",
]
