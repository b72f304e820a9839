"""What is raised for a grammar that cannot be enforced."""

from __future__ import annotations

from cvllm_jax.errors import GenerationError

__all__ = ["GrammarError"]


class GrammarError(GenerationError):
    """A schema, pattern or grammar that is invalid, unsupported or too large; or whose state grew too large midway.

    ``str(error)`` names the keyword or the position.
    """
