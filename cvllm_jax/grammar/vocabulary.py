"""A model's vocabulary as the constraint engine knows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from cvllm_jax.errors import ConfigError, TokenizationError
from cvllm_jax.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

__all__ = ["Vocabulary"]


class Vocabulary:
    """The bytes of every token, with control tokens apart: no text spells one.

    Arguments:
        eos_token_ids: tokens that end an answer. They are control tokens here, whatever the vocabulary says.
        size: how many logits the model has. Ids that the vocabulary lacks are never allowed.

    Raises:
        ConfigError: llguidance is not installed, or there is no end token.
        TokenizationError: the tokens stand for no bytes of their own.
    """

    # What the engine asks of a tokenizer:
    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Sequence[int], size: int) -> None:
        try:
            from llguidance import LLTokenizer
        except ImportError:
            raise ConfigError(
                "structured output needs llguidance: install cvllm-jax[structured]", param="response_format"
            ) from None
        ends = sorted({token for token in eos_token_ids if 0 <= token < size})
        if not ends:
            raise ConfigError("structured output needs a model whose vocabulary has an end-of-sequence token")
        self.size = size
        self.control_tokens = {name: token for token, name in tokenizer.control_tokens.items() if token < size}
        self.special_token_ids = sorted({*self.control_tokens.values(), *ends})
        self.eos_token_id = ends[0]
        self.end_tokens = frozenset(ends)
        self.tokens = [tokenizer.token_bytes(token) for token in range(size)]
        for token in ends:
            self.tokens[token] = self.tokens[token] or b"<eos>"  # without a name it would be no token
        self._tokenizer = tokenizer
        self.engine: LLTokenizer = LLTokenizer(cast(Any, self), eos_token=ends)  # its stub asks for a subclass

    def __call__(self, text: str) -> list[int]:
        """The tokens of text inside an answer, for the engine: it wants to know how forced text is usually written.

        It must not raise, and its tokens must have the bytes of the text.
        """
        try:
            ids = self._tokenizer.encode(text)
        except TokenizationError:  # the text spells a control token that the vocabulary cannot tell from it
            ids = []
        if all(token < self.size for token in ids) and b"".join(self.tokens[token] for token in ids) == text.encode():
            return ids
        return list(self.engine.greedy_tokenize(text))  # a vocabulary that writes a space in front of every text
