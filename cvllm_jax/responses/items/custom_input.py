"""The input of a custom tool, read from the JSON arguments that models write."""

from __future__ import annotations

import json
import re

__all__ = ["CustomInput"]

_BEGINNING = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_PLAIN = re.compile(r'[^"\\]*')
_UNICODE = re.compile(r"\\u([0-9a-fA-F]{4})")
_BEGUN_UNICODE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class CustomInput:
    """Reads ``{"input": "..."}`` as it comes and gives the string's text.

    Arguments of another form are read when they are whole: an ``input`` elsewhere in an object, or else the text as
    the model wrote it. An escape that JSON does not know stays as it is; half a surrogate pair is U+FFFD.
    """

    def __init__(self) -> None:
        self._text = ""
        """Up to the string: everything. In the string: the tail that is not read yet."""
        self._inside = False
        self._ended = False

    def feed(self, text: str) -> str:
        """The input's next piece."""
        if self._ended:
            return ""
        self._text += text
        if not self._inside:
            match = _BEGINNING.match(self._text)
            if match is None:
                return ""
            self._inside, self._text = True, self._text[match.end() :]
        return self._read()

    def finish(self, *, cut: bool) -> str:
        """What is left, now that no more follows; ``cut``: because of a limit."""
        if self._inside or cut:
            return ""
        try:
            arguments = json.loads(self._text or "{}")
        except (ValueError, RecursionError):
            return self._text
        value = arguments.get("input", "" if not arguments else None) if isinstance(arguments, dict) else None
        return _characters(value) if isinstance(value, str) else self._text

    def _read(self) -> str:
        pieces: list[str] = []
        at, text = 0, self._text
        while at < len(text):
            plain = _PLAIN.match(text, at)
            assert plain is not None
            pieces.append(plain[0])
            at = plain.end()
            if text[at : at + 1] == '"':
                self._ended = True
                break
            read = _escape(text, at) if at < len(text) else None
            if read is None:
                break
            piece, at = read
            pieces.append(piece)
        self._text = text[at:]
        return "".join(pieces)


def _escape(text: str, at: int) -> tuple[str, int] | None:
    """What the escape at ``at`` stands for, and where it ends; None if it may go on after the text."""
    if _BEGUN_UNICODE.fullmatch(text, at):
        return None
    unit = _UNICODE.match(text, at)
    if unit is None:
        letter = text[at + 1]
        return _ESCAPES.get(letter, "\\" + letter), at + 2
    code, end = int(unit[1], 16), unit.end()
    if 0xD800 <= code < 0xDC00:
        low = _UNICODE.match(text, end)
        if low is not None and 0xDC00 <= int(low[1], 16) < 0xE000:
            return chr(0x10000 + ((code - 0xD800) << 10) + int(low[1], 16) - 0xDC00), low.end()
        if low is None and (end == len(text) or _BEGUN_UNICODE.fullmatch(text, end)):
            return None
    return ("\ufffd" if 0xD800 <= code < 0xE000 else chr(code)), end


def _characters(text: str) -> str:
    """``text`` without halves of surrogate pairs, which UTF-8 cannot carry."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
