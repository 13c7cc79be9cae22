"""What a decoder is made of, in numbers and flags."""

import dataclasses
from typing import Literal, TypeAlias, get_args

from anyprec_jax.models.rope_scaling import FrequencyFactors, LongRopeScaling, RopeScaling

Norm: TypeAlias = Literal["rms", "layer"]
NormOrder: TypeAlias = Literal["input", "both", "output", "sum"]
Residual: TypeAlias = Literal["sequential", "parallel", "parallel_one_norm"]
HeadNorm: TypeAlias = Literal["none", "shared", "separate", "joint"]
Activation: TypeAlias = Literal["silu", "gelu", "gelu_tanh", "relu"]

_CHOICES = {
    "norm": get_args(Norm),
    "norm_order": get_args(NormOrder),
    "residual": get_args(Residual),
    "head_norm": get_args(HeadNorm),
    "activation": get_args(Activation),
}
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
_OPTIONAL_SIZES = ("embedding_size", "window")
_COUNTS = ("position_offset", "num_experts", "experts_per_token")
_FLAGS = (
    "tie_embeddings",
    "attention_bias",
    "qkv_bias",
    "mlp_bias",
    "gated_mlp",
    "norm_plus_one",
    "final_norm",
    "learned_positions",
    "normalized_experts",
)
_FLOAT32_LIMIT = 2.0**128


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes, flags and constants of one model. Hashable: a static argument of jitted functions.

    The defaults of the flags are those of Llama. Layers are numbered from 0.

    Attributes:
      family: key of `families.FAMILIES`.
      vocab_size: rows of the embedding.
      hidden_size: width of the residual stream.
      intermediate_size: width of the MLP, or of one expert's.
      num_layers: decoder layers.
      num_heads: query heads; a multiple of `num_kv_heads`.
      num_kv_heads: key and value heads.
      head_dim: width of a head, even where it is rotated; need not be `hidden_size / num_heads`.
      max_position_embeddings: context length the model was made for, in tokens. Enforced by the decoder with learned positions only.
      norm: "rms", or "layer" for one that also subtracts the mean and has a bias.
      norm_eps: added to the mean square (the variance) before the root.
      norm_plus_one: norms multiply by their weight plus one.
      norm_order: what is normed: the "input" of attention and MLP; "both" input and output; the "output", before it is added; or the
        "sum".
      final_norm: there is a norm before the output head.
      residual: attention and MLP one after the other ("sequential"), or "parallel", from the same input through a norm each, or through
        one norm ("parallel_one_norm").
      head_norm: a norm of every query and key head: with weights "shared" by the heads, "separate" for each, or over all heads "joint"ly.
      activation: of the MLP; "gelu_tanh" is the approximation by tanh.
      gated_mlp: the MLP is down(activation(gate(x)) * up(x)), otherwise down(activation(up(x))).
      rotary_dim: how many of a head's dimensions are rotated, the first ones, an even number; None is all, 0 none.
      rope_theta: base of the rotary wavelengths.
      rope_scaling: how the wavelengths are stretched; None leaves them alone.
      window_rope_theta: base in the layers with a window, whose wavelengths are then not stretched; None is that of the others.
      unrotated_layers: layers without rotary embedding.
      window: how many positions a query sees, itself among them; None is all.
      global_layers: layers without the window.
      learned_positions: a vector is added to the embedding at every position.
      position_offset: that of position p is row `p + position_offset`.
      query_scale: what scores are multiplied by; None is `head_dim ** -0.5`.
      score_cap: scores become `cap * tanh(score / cap)` before the softmax; None leaves them.
      logit_cap: the same of logits.
      qkv_limit: queries, keys and values are clipped to plus and minus this.
      embedding_size: width of embedding and head, where a matrix leads from it to `hidden_size` and one back; None where none does.
      embedding_scale: embeddings are multiplied by this.
      tie_embeddings: the output head is the embedding.
      attention_bias: q, k, v and o projections have biases.
      qkv_bias: q, k and v projections have, whatever o has.
      mlp_bias: gate, up and down projections have biases.
      num_experts: MLPs of a layer; 0 is one MLP without a router.
      experts_per_token: how many of them compute a token's output.
      normalized_experts: their weights are made to sum to one.
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
    norm: Norm = "rms"
    norm_eps: float = 1e-6
    norm_plus_one: bool = False
    norm_order: NormOrder = "input"
    final_norm: bool = True
    residual: Residual = "sequential"
    head_norm: HeadNorm = "none"
    activation: Activation = "silu"
    gated_mlp: bool = True
    rotary_dim: int | None = None
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    window_rope_theta: float | None = None
    unrotated_layers: tuple[int, ...] = ()
    window: int | None = None
    global_layers: tuple[int, ...] = ()
    learned_positions: bool = False
    position_offset: int = 0
    query_scale: float | None = None
    score_cap: float | None = None
    logit_cap: float | None = None
    qkv_limit: float | None = None
    embedding_size: int | None = None
    embedding_scale: float = 1.0
    tie_embeddings: bool = False
    attention_bias: bool = False
    qkv_bias: bool = False
    mlp_bias: bool = False
    num_experts: int = 0
    experts_per_token: int = 0
    normalized_experts: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        self._check_kinds()
        self._check_attention()
        if self.num_experts and not 0 < self.experts_per_token <= self.num_experts:
            raise ValueError(
                f"experts_per_token must be from 1 to num_experts {self.num_experts}, got {self.experts_per_token}"
            )

    @property
    def rotated(self) -> int:
        """Dimensions of a head that are rotated; 0 is none."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def num_positions(self) -> int:
        """Rows of the learned positions."""
        return self.max_position_embeddings + self.position_offset

    def _check_kinds(self) -> None:
        """JSON and GGUF hold any value anywhere."""
        optional = [name for name in _OPTIONAL_SIZES if getattr(self, name) is not None]
        for names, least, what in (
            ((*_SIZES, *optional), 1, "a positive integer"),
            (_COUNTS, 0, "an integer of at least 0"),
        ):
            for name in names:
                value = getattr(self, name)
                if not _is_integer(value) or value < least:
                    raise ValueError(f"{name} must be {what}, got {value!r}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name, above in (("norm_eps", 0.0), ("rope_theta", 1.0), ("embedding_scale", 0.0)):
            _check_number(name, getattr(self, name), above)
        for name in ("window_rope_theta", "query_scale", "score_cap", "logit_cap", "qkv_limit"):
            if (value := getattr(self, name)) is not None:
                _check_number(name, value, 1.0 if name == "window_rope_theta" else 0.0)
        for token in (self.bos_token_id, self.pad_token_id, *self.eos_token_ids):
            if token is not None and (not _is_integer(token) or token < 0):
                raise ValueError(f"token ids must be integers of at least 0, got {token!r}")

    def _check_attention(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
        if not _is_integer(self.rotated) or self.rotated % 2 or not 0 <= self.rotated <= self.head_dim:
            name = "head_dim" if self.rotary_dim is None else "rotary_dim"
            raise ValueError(
                f"{name} must be even for rotary embedding, and at most head_dim {self.head_dim}, got {self.rotated}"
            )
        if self.rotated and isinstance(self.rope_scaling, FrequencyFactors | LongRopeScaling):
            count = self.rope_scaling.num_pairs
            if 2 * count != self.rotated:
                raise ValueError(
                    f"{count} rope factors, where {self.rotated} rotated dimensions have {self.rotated // 2} pairs"
                )
        for name in ("global_layers", "unrotated_layers"):
            layers = getattr(self, name)
            if not all(_is_integer(layer) and 0 <= layer < self.num_layers for layer in layers):
                raise ValueError(f"{name} must be numbers of layers below {self.num_layers}, got {layers!r}")
            if sorted(set(layers)) != list(layers):
                raise ValueError(f"{name} must be in order, each once, got {layers!r}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_number(name: str, value: object, above: float) -> None:
    if not isinstance(value, float) or not above < value < _FLOAT32_LIMIT:
        raise ValueError(f"{name} must be a number above {above:g}, got {value!r}")
