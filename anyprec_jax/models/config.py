"""What a decoder is made of, in numbers."""

import dataclasses

from anyprec_jax.models.rope_scaling import FrequencyFactors, RopeScaling

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "max_position_embeddings",
)
_FLAGS = ("tie_embeddings", "attention_bias", "mlp_bias")
_FLOAT32_LIMIT = 2.0**128


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes, flags and constants of one model. Hashable: a static argument of jitted functions.

    Attributes:
      family: key of `families.FAMILIES`.
      vocab_size: rows of the embedding.
      hidden_size: width of the residual stream.
      intermediate_size: width of the gated MLP.
      num_layers: decoder layers.
      num_heads: query heads; a multiple of `num_kv_heads`.
      num_kv_heads: key and value heads.
      head_dim: width of a head, even; need not be `hidden_size / num_heads`.
      max_position_embeddings: context length the model was made for, in tokens. Not enforced by the decoder.
      rms_norm_eps: added to the mean square before the root.
      rope_theta: base of the rotary wavelengths.
      rope_scaling: how the wavelengths are stretched; None leaves them alone.
      tie_embeddings: the output head is the embedding.
      attention_bias: q, k, v and o projections have biases.
      mlp_bias: gate, up and down projections have biases.
      bos_token_id: the token that starts a text, if there is one.
      eos_token_ids: the tokens that end one.
      pad_token_id: the token that fills up batches, if there is one.
    """

    family: str = "llama"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if not _is_integer(value) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name, above in (("rms_norm_eps", 0.0), ("rope_theta", 1.0)):
            value = getattr(self, name)
            if not isinstance(value, float) or not above < value < _FLOAT32_LIMIT:
                raise ValueError(f"{name} must be a number above {above:g}, got {value!r}")
        for token in (self.bos_token_id, self.pad_token_id, *self.eos_token_ids):
            if token is not None and (not _is_integer(token) or token < 0):
                raise ValueError(f"token ids must be integers of at least 0, got {token!r}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embedding, got {self.head_dim}")
        if isinstance(self.rope_scaling, FrequencyFactors) and 2 * len(self.rope_scaling.factors) != self.head_dim:
            raise ValueError(
                f"{len(self.rope_scaling.factors)} rope factors, where heads of {self.head_dim} have {self.head_dim // 2} pairs"
            )


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
