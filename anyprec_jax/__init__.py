"""Any-precision language models: quantize once into stacked bitplanes, read at any precision.

After Any-Precision LLM: Low-Cost Deployment of Multiple, Different-Sized LLMs (Park et al., ICML 2024).
"""

from anyprec_jax.allocation import allocate as allocate
from anyprec_jax.allocation import quantization_errors as quantization_errors
from anyprec_jax.array import AnyPrecArray as AnyPrecArray
from anyprec_jax.array import PreparedArray as PreparedArray
from anyprec_jax.array import expand as expand
from anyprec_jax.array import validate as validate
from anyprec_jax.checkpoint import export as export
from anyprec_jax.checkpoint import load as load
from anyprec_jax.checkpoint import precision_for as precision_for
from anyprec_jax.checkpoint import save as save
from anyprec_jax.compact_codebooks import CompactCodebooks as CompactCodebooks
from anyprec_jax.compaction import compact as compact
from anyprec_jax.config import QuantizeConfig as QuantizeConfig
from anyprec_jax.evaluate import perplexity as perplexity
from anyprec_jax.generation import generate as generate
from anyprec_jax.joint_codes import JointSettings as JointSettings
from anyprec_jax.joint_codes import optimise_codes as optimise_codes
from anyprec_jax.layout import prepare as prepare
from anyprec_jax.model_quantization import Calibration as Calibration
from anyprec_jax.model_quantization import quantize_model as quantize_model
from anyprec_jax.models import Model as Model
from anyprec_jax.models import ModelConfig as ModelConfig
from anyprec_jax.models import Precision as Precision
from anyprec_jax.models import PrecisionMap as PrecisionMap
from anyprec_jax.models import forward as forward
from anyprec_jax.ops import codes as codes
from anyprec_jax.ops import dequantize as dequantize
from anyprec_jax.ops import matmul as matmul
from anyprec_jax.ops import matmul_mixed as matmul_mixed
from anyprec_jax.quantization import quantize as quantize
from anyprec_jax.quantization import quantize_jointly as quantize_jointly
from anyprec_jax.sharding import shard as shard
from anyprec_jax.sharding import tensor_parallel_mesh as tensor_parallel_mesh
