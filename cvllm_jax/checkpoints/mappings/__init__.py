"""Tensor names of each model family; ``<family>.RULES`` is all that a family adds."""
