"""Reading JSON piece by piece, without recursion and without building it.

Values are passed on exactly as they are written. Nothing is checked that is not needed to find a value's end: models
make mistakes, and what they wrote is for the tool to judge. Outside strings ``<`` ends a value, because there it can
only begin a marker.
"""

from __future__ import annotations

import re
from string import hexdigits

from cvllm_jax.openai.tool_parsers.reader import Sink, Steps, TextReader

__all__ = ["json_text", "json_value"]

_IN_STRING = re.compile(r'[^"\\]*')
_BETWEEN = re.compile(r'[^"{}\[\]<]*')
_SCALAR = re.compile(r'[^\s,:;"{}\[\]<]*')
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_REPLACEMENT = "\ufffd"


def json_value(reader: TextReader, sink: Sink) -> Steps[bool]:
    """Pass one value on as it is written. Whether it is complete: it is not at the end of the text or at ``<``."""
    first = yield from reader.peek()
    if first == '"':
        return (yield from _string(reader, sink))
    if first not in ("{", "["):
        written: list[str] = []
        yield from reader.run(_SCALAR, written.append)
        sink("".join(written))
        return bool(written)
    depth = 0
    while True:
        yield from reader.run(_BETWEEN, sink)
        char = yield from reader.peek()
        if char == '"':
            if not (yield from _string(reader, sink)):
                return False
            continue
        if char in ("", "<"):
            return False
        depth += 1 if char in "{[" else -1
        sink(reader.take())
        if depth == 0:
            return True


def _string(reader: TextReader, sink: Sink) -> Steps[bool]:
    sink(reader.take())
    while True:
        yield from reader.run(_IN_STRING, sink)
        char = yield from reader.peek()
        if not char:
            return False
        sink(reader.take())
        if char == '"':
            return True
        if (yield from reader.peek()):
            sink(reader.take())  # the escaped character


def json_text(reader: TextReader, sink: Sink) -> Steps[bool]:
    """Pass on what a string says, its escapes decoded. Whether the string is complete."""
    reader.take()
    while True:
        yield from reader.run(_IN_STRING, sink)
        char = yield from reader.peek()
        if not char:
            return False
        reader.take()
        if char == '"':
            return True
        escaped = yield from reader.peek()
        if not escaped:
            return False
        reader.take()
        if escaped == "u":
            yield from _unicode(reader, sink)
        else:
            sink(_ESCAPES.get(escaped, escaped))


def _unicode(reader: TextReader, sink: Sink) -> Steps[None]:
    """Pass on the character of a ``\\u`` escape. Half a surrogate pair is no character, and UTF-8 cannot carry it."""
    high = 0
    while True:
        digits = ""
        while len(digits) < 4:
            char = yield from reader.peek()
            if not char or char not in hexdigits:
                sink(_REPLACEMENT + digits)
                return
            digits += reader.take()
        unit = int(digits, 16)
        if high and 0xDC00 <= unit < 0xE000:
            sink(chr(0x10000 + ((high - 0xD800) << 10) + unit - 0xDC00))
            return
        if high:
            sink(_REPLACEMENT)
        if not 0xD800 <= unit < 0xDC00:
            sink(_REPLACEMENT if 0xDC00 <= unit < 0xE000 else chr(unit))
            return
        high = unit
        if (yield from reader.literal("\\u")) is None:
            sink(_REPLACEMENT)
            return
