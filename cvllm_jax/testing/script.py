"""Scripts: what the scripted model says, and to what."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvllm_jax.errors import ModelLoadError, shown

__all__ = ["DEFAULT_ANSWER", "MAX_RULES", "Rule", "Script", "read_script"]

#: Said where no rule matches and the script has no ``default`` of its own.
DEFAULT_ANSWER = "No rule of the script matches the last message."

MAX_RULES = 1023
MAX_FILE_BYTES = 1 << 24

_END = "<|im_end|>"
_CHATML = Path(__file__).with_name("chatml.jinja")
_FIELDS = ("rules", "default", "template", "control_tokens", "eos_token")

# What Python's expressions take as a plain brace and the linear-time engine does not. Escapes are passed over.
_PLAIN_BRACE = re.compile(r"\\[pPx]\{[^}]*\}|\\.|\{(?!\d+(?:,\d*)?\})", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    matches: Callable[[str], bool]
    say: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """The content of a script's file."""

    rules: tuple[Rule, ...]
    default: str
    """What is said where no rule matches."""
    template: str
    """The chat template's source."""
    control_tokens: tuple[str, ...]
    """Texts that are one control token each in the template and in answers; the end token is among them."""
    eos_token: str

    @property
    def lines(self) -> tuple[str, ...]:
        """Everything there is to say: the default, then what each rule says."""
        return (self.default, *(rule.say for rule in self.rules))

    def line_for(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """The line that answers these messages: that of the first rule found in the last user or tool turn, else 0."""
        turns = [message for message in messages if message.get("role") in ("user", "tool")]
        if not turns:
            return 0
        text = _text(turns[-1].get("content"))
        return next((line for line, rule in enumerate(self.rules, 1) if rule.matches(text)), 0)


def read_script(path: Path) -> Script:
    """Read a script: a JSON list of rules ``{"when": REGEX, "say": TEXT}``, or an object that has it as ``rules``.

    The object may also have ``default``, said where no rule matches; ``template``, a Jinja file beside the script, in
    place of ChatML with hermes tools; ``control_tokens``, texts that are one token; and ``eos_token``, which ends an
    answer. Expressions are those of Python's ``re`` without look-around and back-references, and ``$`` is the very
    end: they are searched in linear time, so that no message can hold the server up.

    Raises:
      ModelLoadError: it cannot be read, or says which rule is wrong.
    """
    content = _read_json(path)
    if isinstance(content, list):
        content = {"rules": content}
    if not isinstance(content, dict) or not isinstance(rules := content.get("rules"), list):
        raise ModelLoadError(f'the script {path} must be a list of rules, or an object with a list "rules"')
    if unknown := [name for name in content if name not in _FIELDS]:
        raise ModelLoadError(f"the script {path} has {shown(unknown[0])}; a script has {', '.join(_FIELDS)}")
    if len(rules) > MAX_RULES:
        raise ModelLoadError(f"the script {path} has {len(rules)} rules; {MAX_RULES} are the most")
    end = _string(content, "eos_token", _END, path)
    control = content.get("control_tokens", [] if "template" in content else ["<|im_start|>"])
    if not isinstance(control, list) or not all(isinstance(token, str) and token.strip() for token in control):
        raise ModelLoadError(f"control_tokens of the script {path} must be a list of texts")
    template = path.parent / _string(content, "template", "", path) if "template" in content else _CHATML
    return Script(
        rules=tuple(_rule(rule, f"rule {index} of the script {path}") for index, rule in enumerate(rules)),
        default=_string(content, "default", DEFAULT_ANSWER, path),
        template=_read(template),
        control_tokens=tuple(dict.fromkeys([*control, end])),
        eos_token=end,
    )


def _rule(rule: Any, where: str) -> Rule:
    match rule:
        case {"when": str(when), "say": str(say), **rest} if not rest:
            return Rule(matches=_searcher(when, where), say=say)
    raise ModelLoadError(f'{where} must be an object with the texts "when" and "say" alone, not {shown(rule)}')


def _searcher(pattern: str, where: str) -> Callable[[str], bool]:
    """Whether a text contains what an expression describes, in time linear in the text."""
    # Rust's regex crate, in a package that is there anyway; not at module level, because the engine imports this module
    from pydantic_core import SchemaError, SchemaValidator, core_schema

    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ModelLoadError(f"{where}: {shown(pattern)} is no regular expression: {_one_line(error)}") from None
    plain = _PLAIN_BRACE.sub(lambda found: r"\{" if found[0] == "{" else found[0], pattern)
    try:
        return SchemaValidator(core_schema.str_schema(pattern=plain, regex_engine="rust-regex")).isinstance_python
    except (SchemaError, UnicodeEncodeError) as error:
        reason = str(error).rpartition("error: ")[2]
        raise ModelLoadError(f"{where}: {shown(pattern)} cannot be searched for: {' '.join(reason.split())}") from None


def _text(content: Any) -> str:
    """A turn's text; parts are on lines of their own."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _string(content: Mapping[str, Any], name: str, default: str, path: Path) -> str:
    value = content.get(name, default)
    if not isinstance(value, str) or (name != "default" and name in content and not value.strip()):
        raise ModelLoadError(f"{name} of the script {path} must be a text, not {shown(value)}")
    return value


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"the script {path} is no JSON: {_one_line(error)}") from None


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ModelLoadError(f"{path} has more than {MAX_FILE_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"{path} is no UTF-8: {error}") from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot read {shown(str(path))}: {getattr(error, 'strerror', None) or error}") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
