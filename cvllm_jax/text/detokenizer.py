"""Text from tokens that arrive one at a time."""

from __future__ import annotations

import codecs

from cvllm_jax.text.tokenizer import Tokenizer, drop_leading_spaces

__all__ = ["Detokenizer"]


class Detokenizer:
    """Turns the tokens of one sequence into text as they come.

    What :meth:`push` and :meth:`finish` return, joined, is ``tokenizer.decode`` of all tokens. A character appears
    when its last byte has come, and U+FFFD when it is certain that no character will; what was given out stays.

    Arguments:
        skip_special: leave control tokens out.
        continues: as in :meth:`Tokenizer.decode`.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True, *, continues: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._spaces_to_drop = 0 if continues else tokenizer.leading_spaces

    def push(self, token: int) -> str:
        """The text that this token completes, often empty.

        Raises:
            TokenizationError: as :meth:`Tokenizer.token_bytes`.
        """
        if self._skip_special and self._tokenizer.is_special(token):
            return ""
        return self._given(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def finish(self) -> str:
        """The text of bytes that were held back; the sequence has ended."""
        return self._given(self._decoder.decode(b"", final=True))

    def _given(self, text: str) -> str:
        if self._spaces_to_drop and text:
            rest = drop_leading_spaces(text, self._spaces_to_drop)
            # Only spaces so far: what follows may begin with more of them.
            self._spaces_to_drop = 0 if rest else self._spaces_to_drop - len(text)
            return rest
        return text
