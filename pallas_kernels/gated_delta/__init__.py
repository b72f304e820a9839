"""The gated delta rule and the short convolution before it: layers that remember a matrix instead of all tokens."""

from pallas_kernels.gated_delta.convolution import convolve
from pallas_kernels.gated_delta.delta_rule import attend
from pallas_kernels.gated_delta.state import RecurrentState

__all__ = ["RecurrentState", "attend", "convolve"]
