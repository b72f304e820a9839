"""Matmul of rows that are sorted by expert, each with its expert's matrix (mixture of experts)."""

from pallas_kernels.grouped_matmul.api import Implementation, choose_implementation, grouped_matmul
from pallas_kernels.grouped_matmul.config import HopperConfig

__all__ = ["HopperConfig", "Implementation", "choose_implementation", "grouped_matmul"]
