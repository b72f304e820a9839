"""Flax NNX ports of language models: one file a family, shared parts in ``layers``."""
