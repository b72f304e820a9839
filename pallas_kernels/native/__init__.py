"""Kernels in C++ for x86 CPUs, called by XLA through its foreign function interface.

They are optional: the sources are part of the package, and the first engine on a machine with a C++ compiler compiles
them once. Everything they do has an XLA form that runs without them and that they are held to.
"""

from pallas_kernels.native.library import load, refusal

__all__ = ["load", "refusal"]
