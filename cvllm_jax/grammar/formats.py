"""The string formats of JSON Schema that are enforced, as schemas of patterns that the engine can follow.

A format is an annotation to most validators; what is generated satisfies those that assert it too.
"""

from __future__ import annotations

from typing import Any

__all__ = ["FORMATS", "UNSUPPORTED_FORMATS"]

_LEAP_YEARS = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_YEARS = r"(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"  # calendars have no year 0000
_DATE = (
    rf"(?:{_YEARS}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    rf"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEARS}-02-29)"
)
_OFFSET = r"(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_TIME = (
    rf"(?:(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?{_OFFSET}"
    r"|23:59:60(?:\.[0-9]+)?(?:[zZ]|[+-]00:00))"  # a leap second is one in UTC
)
_LABEL = r"[a-zA-Z0-9]+(?:-[a-zA-Z0-9]+)*"  # "--" would announce an encoded name, which not every label is
_PCHAR = r"(?:[a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})"
_PCHAR_NC = r"(?:[a-zA-Z0-9._~!$&'()*+,;=@-]|%[0-9a-fA-F]{2})"
_AUTHORITY = rf"//(?:{_PCHAR}*@)?(?:[a-zA-Z0-9._~!$&'()*+,;=-]|%[0-9a-fA-F]{{2}})*(?::[0-9]*)?(?:/{_PCHAR}*)*"
_RELATIVE_REFERENCE = (  # RFC 3986, 4.2
    rf"^(?:{_AUTHORITY}|/(?:{_PCHAR}+(?:/{_PCHAR}*)*)?|{_PCHAR_NC}+(?:/{_PCHAR}*)*)?"
    rf"(?:\?(?:{_PCHAR}|[/?])*)?(?:#(?:{_PCHAR}|[/?])*)?$"
)
_POINTER = r"(?:/(?:[^~/]|~[01])*)*"

#: By format, a schema that says nothing about values that are no strings.
FORMATS: dict[str, dict[str, Any]] = {
    "date": {"pattern": f"^{_DATE}$"},
    "time": {"pattern": f"^{_TIME}$"},
    "date-time": {"pattern": f"^{_DATE}[tT]{_TIME}$"},
    "duration": {"format": "duration"},
    "email": {"format": "email"},
    "hostname": {"allOf": [{"format": "hostname", "maxLength": 253}, {"pattern": rf"^{_LABEL}(?:\.{_LABEL})*$"}]},
    "ipv4": {"format": "ipv4"},
    "ipv6": {"format": "ipv6"},
    "uuid": {"format": "uuid"},
    "uri": {"format": "uri"},
    "uri-reference": {"anyOf": [{"format": "uri"}, {"pattern": _RELATIVE_REFERENCE}]},
    "json-pointer": {"pattern": f"^{_POINTER}$"},
    "relative-json-pointer": {"pattern": f"^(?:0|[1-9][0-9]*)(?:#|{_POINTER})$"},
}

#: What the standard defines besides. Any other name is an annotation.
UNSUPPORTED_FORMATS = frozenset({"idn-email", "idn-hostname", "iri", "iri-reference", "regex", "uri-template"})
