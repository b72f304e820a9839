"""Which grammar an answer must match."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from cvllm_jax.grammar import (
    AfterText,
    Grammar,
    GrammarError,
    JsonObjectGrammar,
    JsonSchemaGrammar,
    LarkGrammar,
    RegexGrammar,
    TextGrammar,
    ToolCallGrammar,
)
from cvllm_jax.openai.answer_rules import ContentGrammar, Thinking, answer_grammar, harmony_grammar
from cvllm_jax.openai.call_rules import Calls, call_grammar, call_rules
from cvllm_jax.openai.errors import RequestError
from cvllm_jax.openai.model_format import ModelFormat
from cvllm_jax.openai.reasoning.tags import TaggedReasoning
from cvllm_jax.openai.tool_parsers.call_form import CallForm, JsonCalls
from cvllm_jax.openai.tool_plan import ToolPlan
from cvllm_jax.openai.types import (
    ChatCompletionRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    StructuredOutputs,
    TextFunction,
    Tool,
)

__all__ = ["Constraint", "constrain"]

_SPECIAL = re.compile(r"[\\^$.*+?()\[\]{}|/]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A grammar, and what of the request asks for it."""

    grammar: Grammar
    param: str
    subject: str
    """What a message calls it."""
    code: str | None = None

    def refusal(self, error: GrammarError) -> RequestError:
        """The request's error for a grammar that cannot be enforced."""
        return _refusal(error, self.param, self.subject, self.code)


def constrain(request: ChatCompletionRequest, plan: ToolPlan, form: ModelFormat, prompt_end: str) -> Constraint | None:
    """The constraint on the answer to a prompt that ends with ``prompt_end``; None if there is none.

    Raises RequestError for one that is invalid or cannot be enforced for this model.
    """
    content, param, subject = _wanted_content(request)
    if plan.required or (content is None and plan.constrained):
        content, param, subject = None, "tools", "'tools'"
    elif content is None:
        return None
    code = {"tools": "invalid_function_parameters", "response_format": "invalid_json_schema"}.get(param)
    try:
        grammar = _grammar(content, _calls(request, plan, form), form, prompt_end)
    except GrammarError as error:
        raise _refusal(error, param, subject, code) from None
    except RecursionError:
        raise _refusal(GrammarError("it is nested too deep"), param, subject, code) from None
    return Constraint(grammar=grammar, param=param, subject=subject, code=code)


def _refusal(error: GrammarError, param: str, subject: str, code: str | None) -> RequestError:
    return RequestError(f"Invalid {subject}: {error}.", param=param, code=code or "invalid_value")


def _wanted_content(request: ChatCompletionRequest) -> tuple[ContentGrammar | LarkGrammar | None, str, str]:
    """What ``response_format`` or ``structured_outputs`` ask for, with the field's name and how to call it."""
    wanted: ContentGrammar | LarkGrammar | None = None
    match request.response_format:
        case JsonObjectFormat():
            wanted = JsonObjectGrammar()
        case JsonSchemaFormat(json_schema=schema):
            subject = f"schema for response_format '{schema.name}'"
            wanted = JsonSchemaGrammar(schema.schema_)
            if request.structured_outputs is None:
                return wanted, "response_format", subject
    if request.structured_outputs is None:
        return wanted, "response_format", "response_format"
    if wanted is not None:
        raise RequestError(
            "'structured_outputs' and 'response_format' both constrain the answer; use one of them.",
            param="structured_outputs",
            code="invalid_parameter_combination",
        )
    return _structured(request.structured_outputs), "structured_outputs", "'structured_outputs'"


def _structured(outputs: StructuredOutputs) -> ContentGrammar | LarkGrammar:
    given = [name for name, value in outputs if value is not None and value is not False]
    if outputs.json_ is False:
        given.append("json_")
    if len(given) != 1:
        raise RequestError(
            "'structured_outputs' needs exactly one of 'json', 'json_object', 'regex', 'grammar' and 'choice', "
            f"not {len(given)}.",
            param="structured_outputs",
            code="invalid_parameter_combination",
        )
    if outputs.json_object:
        return JsonObjectGrammar()
    if outputs.regex is not None:
        return RegexGrammar(outputs.regex)
    if outputs.grammar is not None:
        return LarkGrammar(outputs.grammar)
    if outputs.choice is not None:
        return RegexGrammar("|".join(_SPECIAL.sub(r"\\\g<0>", text) for text in outputs.choice))
    schema = outputs.json_
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise RequestError(
                f"Invalid 'structured_outputs.json': not JSON: {error}.", param="structured_outputs.json"
            ) from None
    if not isinstance(schema, dict | bool):
        raise RequestError(
            "Invalid 'structured_outputs.json': a JSON schema is an object or a boolean.",
            param="structured_outputs.json",
        )
    return JsonSchemaGrammar(schema)


def _calls(request: ChatCompletionRequest, plan: ToolPlan, form: ModelFormat) -> Calls | None:
    """The calls that a grammar has to have, as the model writes them."""
    if not plan.callable:
        return None
    written = _call_form(form, required=plan.required)
    return Calls(
        form=written,
        tools=[
            (tool.function.name, _arguments(tool, (request.tools or []).index(tool), written))
            for tool in plan.callable
        ],
        required=plan.required,
        parallel=plan.parallel and written.parallel,
    )


def _call_form(form: ModelFormat, *, required: bool) -> CallForm:
    """How calls are written; refuses a format that cannot say so."""
    assert form.tool_parser is not None
    try:
        written = form.call_form
        if not required and not written.free_text:
            raise GrammarError("its response_template has a field around text, which goes with required calls only")
    except GrammarError as error:
        raise RequestError(
            f"Calls in this model's format ({form.tool_parser.name}) cannot be enforced as asked for: {error}.",
            param="tool_choice",
            code="unsupported_parameter",
        ) from None
    return written


def _arguments(tool: Tool, index: int, form: CallForm) -> dict[str, Any] | TextGrammar:
    """The schema of a tool's arguments, or the grammar of the only one; checked here, where an error can name the tool.
    """
    if isinstance(tool.function, TextFunction):
        return _input_grammar(tool.function, form)
    schema = tool.function.parameters
    if schema is None:
        schema = {"type": "object", "additionalProperties": False}
    try:
        call_rules(form, tool.function.name, schema, "t", {})
    except (GrammarError, RecursionError) as error:
        reason = error if isinstance(error, GrammarError) else "it is nested too deep"
        raise RequestError(
            f"Invalid schema for function '{tool.function.name}': {reason}.",
            param=f"tools[{index}].function.parameters",
            code="invalid_function_parameters",
        ) from None
    return schema


def _input_grammar(function: TextFunction, form: CallForm) -> TextGrammar:
    try:
        call_rules(form, function.name, function.grammar, "t", {})
    except (GrammarError, RecursionError) as error:
        reason = error if isinstance(error, GrammarError) else "it is nested too deep"
        raise RequestError(
            f"Invalid grammar for custom tool '{function.name}': {reason}.", param="tools", code="invalid_grammar"
        ) from None
    return function.grammar


def _grammar(
    content: ContentGrammar | LarkGrammar | None, calls: Calls | None, form: ModelFormat, prompt_end: str
) -> Grammar:
    """The grammar in the model's markup: in the words of the grammar package where it has them."""
    thinking = _thinking(form, prompt_end, calls is not None)
    in_channels = form.writes_channels
    if isinstance(content, LarkGrammar):
        if calls is not None or in_channels or (thinking is not None and thinking.begun):
            raise RequestError(
                "'structured_outputs.grammar' is the grammar of a whole answer: it goes with neither tools nor "
                "reasoning; leave out 'tools', or turn reasoning off with 'chat_template_kwargs'.",
                param="structured_outputs",
                code="invalid_parameter_combination",
            )
        return content
    controls = form.control_tokens
    if in_channels:
        return harmony_grammar(content, calls, controls)
    if thinking is None or thinking.begun:
        plain = content if calls is None else _plain_calls(calls) if content is None else None
        if plain is not None and thinking is None:
            return plain
        if plain is not None and thinking is not None and (calls is None or calls.required):
            return AfterText(thinking.closing, plain)
    return answer_grammar(content, calls, thinking, controls)


def _plain_calls(calls: Calls) -> ToolCallGrammar | None:
    form = calls.form
    is_plain = isinstance(form, JsonCalls) and form.notation is None
    is_plain = is_plain and all(isinstance(arguments, dict) for _, arguments in calls.tools)
    return call_grammar(calls, at_least_one=calls.required) if is_plain else None


def _thinking(form: ModelFormat, prompt_end: str, with_calls: bool) -> Thinking | None:
    """The reasoning that may come before the answer; None if there is none, or the prompt has closed it."""
    tags = form.thinking_tags
    if with_calls and form.tool_parser is not None and form.tool_parser.handles_reasoning:
        marks = form.tool_parser.reasoning_marks
        tags = TaggedReasoning(form.tool_parser.name, *marks) if marks is not None else None
    if tags is None or prompt_end.rstrip().endswith(tags.closing.rstrip()):
        return None
    return Thinking(opening=tags.opening, closing=tags.closing, begun=tags.starts_inside(prompt_end))
