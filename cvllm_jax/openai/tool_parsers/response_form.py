"""The form of calls that a ``response_template`` describes, for grammars: how to write what it reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cvllm_jax.grammar import GrammarError
from cvllm_jax.grammar.patterns import literal
from cvllm_jax.grammar.value_rules import Notation
from cvllm_jax.openai.tool_parsers.anchors import Anchor
from cvllm_jax.openai.tool_parsers.call_form import CallForm, JsonCalls, NamedCalls, TaggedCalls
from cvllm_jax.openai.tool_parsers.notations import json_between, json_without
from cvllm_jax.openai.tool_parsers.response_calls import keys_of
from cvllm_jax.openai.tool_parsers.response_fields import ResponseField, ResponseTemplate
from cvllm_jax.openai.tool_parsers.response_values import placeholder

__all__ = ["response_form", "written"]

# Of a pattern: a named group, what may be left out, or a character that stands for itself.
_PART = re.compile(
    r"\(\?P<(?P<group>\w+)>(?P<inside>[^()]*)\)"
    r"|(?P<optional>(?:\(\?:[^()]*\)|\[\^?\]?(?:\\.|[^\]\\])*\]|\\[sSwWdD]|\.)[*?]\??)"
    r"|(?:\\(?P<control>[nt])|\\(?P<escaped>\W)|(?P<plain>[^\\.()\[\]{}*+?|^$]))(?![*+?{])"
)


@dataclass(frozen=True, slots=True)
class Written:
    """The shortest texts that a pattern matches: ``texts`` with the groups in between."""

    texts: tuple[str, ...]
    groups: tuple[tuple[str, str], ...]
    """Names and patterns."""
    first: str
    """A text that every match has in it."""


def written(anchor: Anchor) -> Written:
    """How to write what an anchor matches.

    Raises:
        GrammarError: the pattern has what there is no single way to write.
    """
    if anchor.literals:
        return Written((anchor.literals[0],), (), anchor.literals[0])
    texts, runs, groups, at = [""], [""], [], 0
    while at < len(anchor.source):
        part = _PART.match(anchor.source, at)
        if part is None:
            raise GrammarError(f"its pattern {anchor.source!r} cannot be written in one way")
        at = part.end()
        if part["group"]:
            groups.append((part["group"], part["inside"]))
            texts.append("")
            runs.append("")
        elif part["optional"]:
            runs.append("")
        else:
            text = {"n": "\n", "t": "\t"}.get(part["control"], part["escaped"] or part["plain"])
            texts[-1] += text
            runs[-1] += text
    return Written(tuple(texts), tuple(groups), next(filter(None, runs), ""))


def response_form(template: ResponseTemplate) -> CallForm:
    """The form of the calls.

    Raises:
        GrammarError: the template does not say how to write them; the message says why.
    """
    field = next((field for field in template.fields if field.name == "tool_calls"), None)
    if field is None or field.opening is None:
        raise GrammarError("its response_template marks no beginning of calls")
    opening = written(field.opening)
    if not opening.first:
        raise GrammarError("its response_template marks no beginning of calls")
    ends = _ends(field)
    others = tuple(map(literal, field.opening.literals[1:]))
    about: dict[str, Any] = {
        "end": ends[0] if ends else "",
        "parallel": field.repeats and bool(ends),
        "trigger": opening.first,
        "not_in_text": others,
        "free_text": all(it.name != "content" or it.opening is None for it in template.fields),
    }
    function = field.transform.get("function") if isinstance(field.transform, Mapping) else None
    if opening.groups:
        return _named(field, function, opening, ends, about)
    if field.content != "json" or field.content_args:
        raise GrammarError(f"its response_template has no name of a function before content {field.content!r}")
    keys = keys_of(function, each=field.transform_each)
    if keys is None:
        raise GrammarError("its response_template takes name and arguments from no keys of an object")
    notation = json_without(ends)
    name, arguments = keys.name, keys.arguments[0]
    if not field.transform_each:
        return JsonCalls(
            begin=opening.texts[0], name_key=name, arguments_key=arguments, notation=notation, **about
        )
    end = about.pop("end")
    about["parallel"] = True
    return JsonCalls(
        opening=f"{opening.texts[0]}[",
        begin="",
        separator=", ",
        end="",
        closing=f"]{end}",
        name_key=name,
        arguments_key=arguments,
        notation=notation,
        **about,
    )


def _named(
    field: ResponseField, function: Any, opening: Written, ends: Sequence[str], about: Mapping[str, Any]
) -> CallForm:
    """Calls whose function stands in the opening."""
    names = [name for name, _ in opening.groups]
    if not isinstance(function, Mapping) or placeholder(function.get("name")) != names:
        raise GrammarError("its response_template takes the function's name from elsewhere than the opening of a call")
    if placeholder(function.get("arguments")) != ["content"]:
        raise GrammarError("its response_template takes the arguments from a part of a call")
    before, between = opening.texts
    shape = opening.groups[0][1]
    match field.content:
        case "json":
            return NamedCalls(
                begin=before,
                between=between,
                notation=_notation(field.content_args, ends),
                retyped=bool(field.content_args),
                names=shape,
                **about,
            )
        case "xml-inline":
            tag = written(Anchor.of_pattern(field.content_args["tag_pattern"]))
            inner = field.content_args.get("value_parser") or {"name": "text"}
            if [name for name, _ in tag.groups] != ["key", "value"] or inner.get("name") not in ("text", "json"):
                raise GrammarError("its response_template has tags that cannot be written in one way")
            begin, after, close = tag.texts
            if not close or (inner.get("name") == "json" and inner.get("args", {}).keys() - {"allow_non_json"}):
                raise GrammarError("its response_template has tags that cannot be written in one way")
            return TaggedCalls(
                begin=before,
                between=between,
                before=begin,
                after=after,
                close=close,
                notation=json_without([close, *ends]),
                strips=True,
                quoted=inner.get("name") == "json",
                names=shape,
                argument_names=tag.groups[0][1],
                **about,
            )
    raise GrammarError(f"its response_template has content {field.content!r}")


def _notation(arguments: Mapping[str, Any], ends: Sequence[str]) -> Notation:
    delimiters = [(str(opening), str(closing)) for opening, closing in arguments.get("string_delims", ())]
    bare = bool(arguments.get("unquoted_keys", False))
    if delimiters:
        return json_between(delimiters, ends, bare_names=bare)
    if bare:
        raise GrammarError("its response_template has keys without quotes beside strings that may look like them")
    return json_without(ends)


def _ends(field: ResponseField) -> tuple[str, ...]:
    """The texts that close a call; none where the text's end does."""
    if field.closing is None:
        return ()
    if field.closing.literals:
        return field.closing.literals
    closing = written(field.closing)
    if closing.groups or closing.first != closing.texts[0]:
        raise GrammarError(f"its pattern {field.closing.source!r} cannot be written in one way")
    return closing.texts
