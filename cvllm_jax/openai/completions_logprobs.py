"""Log probabilities in the form that completions have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cvllm_jax.openai.completions_types import CompletionLogprobs
from cvllm_jax.params import TopLogprob
from cvllm_jax.text import Detokenizer

if TYPE_CHECKING:
    from cvllm_jax.text import Tokenizer

__all__ = ["LogprobsWriter"]


class LogprobsWriter:
    """Writes entries token by token.

    Arguments:
      offset: where in the choice's text the first token begins.
      skip_special: control tokens add nothing to the text.
    """

    def __init__(self, tokenizer: Tokenizer, offset: int = 0, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._offset = offset
        self._decoder = Detokenizer(tokenizer, skip_special)

    def write(
        self, entries: Iterable[tuple[int, float | None, Sequence[TopLogprob] | None]]
    ) -> CompletionLogprobs:
        """Entries of the next tokens: each with its log probability and the most likely ones in its place."""
        written = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for token, logprob, top in entries:
            text = self._text(token)
            written.tokens.append(text)
            written.token_logprobs.append(logprob)
            # The likeliest first: of two tokens with the same text the likelier one is shown.
            best: dict[str, float] = {}
            for entry in top or ():
                best.setdefault(self._text(entry.token), entry.logprob)
            if logprob is not None:
                best.setdefault(text, logprob)
            written.top_logprobs.append(best if logprob is not None else None)
            written.text_offset.append(self._offset)
            self._offset += len(self._decoder.push(token))
        return written

    def _text(self, token: int) -> str:
        data = self._tokenizer.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
