"""The string formats of JSON Schema that are enforced, as schemas of patterns that the engine can follow.

A format is an annotation to most validators; what is generated satisfies those that assert it too.
"""

from __future__ import annotations

from typing import Any

__all__ = ["FORMATS", "FORMAT_TEXTS", "UNSUPPORTED_FORMATS"]

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

_HEX = "[0-9a-fA-F]"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_ATOM = "[a-zA-Z0-9_+-]+"
_DOMAIN = r"[a-zA-Z0-9](?:-?[a-zA-Z0-9]){0,30}(?:\.[a-zA-Z0-9](?:-?[a-zA-Z0-9]){0,30}){0,3}"
_CLOCK = "(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_DAYS = "(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"

#: Patterns of whole texts for the formats that the engine knows by name, for strings that are no JSON. They have the
#: usual spellings, and are narrower than the standards.
FORMAT_TEXTS: dict[str, str] = {
    "duration": f"P(?:{_DAYS}(?:T{_CLOCK})?|T{_CLOCK}|[0-9]+W)",
    "email": rf"{_ATOM}(?:\.{_ATOM})*@{_DOMAIN}",
    "hostname": _DOMAIN,
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "ipv6": f"(?:{_HEX}{{1,4}}:){{7}}{_HEX}{{1,4}}|(?:{_HEX}{{1,4}}:){{1,4}}(?::{_HEX}{{1,4}}){{1,3}}|::1?",
    "uuid": f"{_HEX}{{8}}-(?:{_HEX}{{4}}-){{3}}{_HEX}{{12}}",
    "uri": rf"[a-z][a-z0-9+.-]{{0,15}}:\x{{2f}}\x{{2f}}{_DOMAIN}(?::[0-9]{{1,4}})?(?:\x{{2f}}{_PCHAR}*)*",
}

#: What the standard defines besides. Any other name is an annotation.
UNSUPPORTED_FORMATS = frozenset({"idn-email", "idn-hostname", "iri", "iri-reference", "regex", "uri-template"})
