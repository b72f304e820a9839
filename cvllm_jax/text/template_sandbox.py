"""The environment that chat templates run in: Jinja's immutable sandbox with every kind of work counted.

Templates follow the conventions of Hugging Face transformers 5 (``utils/chat_template_utils.py``): blocks trimmed,
loop controls, a ``generation`` tag, ``tojson`` without HTML escapes, ``raise_exception`` and ``strftime_now``.
They come with the model, from strangers, so the sandbox has limits as well (:mod:`template_budget`). Where Jinja
offers a hook (calls, operators, filters, printed values) the charge is made there; for loops and the like see
:mod:`template_counting`.
"""

from __future__ import annotations

import datetime
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.environment import Template
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from cvllm_jax.text.template_budget import (
    TemplateLimitError,
    allot,
    counted,
    descend,
    spend,
    spend_output,
    spend_value,
)
from cvllm_jax.text.template_counting import COUNTERS, CountingTransformer
from cvllm_jax.text.template_filters import bounded_filters, bounded_tests
from cvllm_jax.text.template_operations import METHODS, charge_format, charge_operator

__all__ = ["TemplateRefusedError", "compile_template"]

MAX_SOURCE = 1 << 16
MAX_RANGE = 100_000
CALL_PRICE = 8
_JINJA_ARGUMENTS = ("_loop_vars", "_block_vars")  # what compiled templates add to each call
MAX_DATE_FORMAT = 128


class TemplateRefusedError(TemplateError):
    """The template called ``raise_exception``."""


def compile_template(source: str) -> Template:
    """Parse a template and put its counters in.

    Raises:
        jinja2.TemplateError: the source is no template, or too long.
    """
    if len(source) > MAX_SOURCE:
        raise TemplateError(f"it has {len(source):,} characters; at most {MAX_SOURCE:,} are accepted")
    environment = _environment()
    with allot():  # Jinja computes some constants as it compiles
        tree = CountingTransformer().visit(environment.parse(source))
        return environment.from_string(tree.set_environment(environment))


@functools.cache
def _environment() -> _ChatEnvironment:
    return _ChatEnvironment()


class _ChatEnvironment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, loopcontrols],
            finalize=_charge_output,
            optimized=False,  # the optimiser would compute constants unasked
        )
        self.filters.clear()
        self.filters.update(bounded_filters() | COUNTERS)
        self.tests.update(bounded_tests())
        del self.globals["lipsum"]
        self.globals.update(
            dict=_new_dict,
            namespace=_Namespace,
            range=_range,
            raise_exception=_raise_exception,
            strftime_now=_strftime_now,
        )

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """What Jinja joins the printed pieces of a template, macro or block with."""
        made = []
        for piece in pieces:
            spend_output(len(piece))
            made.append(piece)
        return "".join(made)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        charge_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):
            raise SecurityError("it looks a tuple up; keys are strings and integers")
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - names apart from kwargs
        spend(1 + len(args) + len(kwargs))
        if isinstance(__obj, Macro | BlockReference | LoopContext):
            spend(CALL_PRICE)
            with descend():
                return super().call(__context, __obj, *args, **kwargs)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, LoopContext):
            spend_value(args)
        elif owner is not None and getattr(type(owner), "__module__", "") in ("builtins", "markupsafe"):
            args = tuple(list(counted(value)) if isinstance(value, Iterator) else value for value in args)
            _charge_method(owner, __obj.__name__, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        def charged(*args: Any, **kwargs: Any) -> str:
            charge_format(value.__self__, args, kwargs)
            return formatted(*args, **kwargs)

        return charged


def _charge_method(owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    named = [value for key, value in kwargs.items() if key not in _JINJA_ARGUMENTS]
    for kind, methods in METHODS.items():
        if isinstance(owner, kind) and name in methods:
            methods[name](owner, (*args, *named))
            return
    raise SecurityError(f"it calls {type(owner).__name__}.{name}, which templates may not")


@pass_context  # a context also keeps Jinja from printing constants while it compiles
def _charge_output(context: Context, value: Any) -> Any:
    spend_value(value)
    return value


class _GenerationTag(Extension):
    """``{% generation %}`` marks what a model is trained on; for inference its content is all that counts."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class _Namespace(Namespace):
    """Jinja's, without names that begin with an underscore and without printing what it holds."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"it stores {name:.80} in a namespace; names there may not begin with an underscore")


def _new_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    values = dict(*args, **kwargs)
    spend(len(values))
    return values


def _range(*args: int) -> range:
    numbers = range(*args)
    try:
        size = len(numbers)
    except OverflowError:
        size = sys.maxsize
    if size > MAX_RANGE:
        raise TemplateLimitError(f"it counts over a range of more than {MAX_RANGE:,} numbers")
    return numbers


def _raise_exception(message: Any = "") -> None:
    spend_value(message)
    raise TemplateRefusedError(str(message))


def _strftime_now(pattern: str) -> str:
    if len(pattern) > MAX_DATE_FORMAT:
        raise SecurityError(f"it formats the date with more than {MAX_DATE_FORMAT} characters")
    return datetime.datetime.now().strftime(pattern)
