"""Matrix products of bfloat16 rows with weights kept in int8, int4 or float8."""

from pallas_kernels.quantized_matmul.api import Choice, Implementation, choose_implementation, quantized_matmul
from pallas_kernels.quantized_matmul.config import HopperConfig
from pallas_kernels.quantized_matmul.weight import Method, QuantizedWeight, dequantize, in_bytes, quantize

__all__ = [
    "Choice",
    "HopperConfig",
    "Implementation",
    "Method",
    "QuantizedWeight",
    "choose_implementation",
    "dequantize",
    "in_bytes",
    "quantize",
    "quantized_matmul",
]
