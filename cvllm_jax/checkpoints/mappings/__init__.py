"""Tensor names of each model family.

A family adds one module with its ``RULES`` and, where llama.cpp knows it, the ``GGUF`` architecture.
"""
