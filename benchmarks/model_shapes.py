"""Shapes of real models that are timed with random weights."""

from anyprec_jax.models.config import ModelConfig

LLAMA_3_2_1B = ModelConfig(
    vocab_size=128_256,
    hidden_size=2048,
    intermediate_size=8192,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    max_position_embeddings=131_072,
    norm_eps=1e-5,
    rope_theta=500_000.0,
    tie_embeddings=True,
)
