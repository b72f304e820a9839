"""What a request's tools, ``tool_choice`` and ``parallel_tool_calls`` ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cvllm_jax.openai.errors import RequestError
from cvllm_jax.openai.model_format import ModelFormat
from cvllm_jax.openai.types import (
    AllowedTools,
    ChatCompletionRequest,
    FunctionDefinition,
    TextFunction,
    Tool,
    ToolReference,
)

__all__ = ["ToolPlan", "plan_tools"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolPlan:
    """Which tools the model sees and which it may or must call."""

    shown: Sequence[Tool] = ()
    """In the prompt: all tools, so that turns which allow others begin with the same tokens."""
    callable: Sequence[Tool] = ()
    """Those that the model may call. Without any, its text is looked at for no calls."""
    required: bool = False
    """The answer is a call."""
    named: bool = False
    """It is a call of the one function that the request names."""
    limited: bool = False
    """The request allows some of its tools only."""
    parallel: bool = True
    """There may be more calls than one."""

    @property
    def constrained(self) -> bool:
        """Whether calls must be right as they are written, by a grammar."""
        return self.required or self.limited or any(_is_exact(tool.function) for tool in self.callable)

    @property
    def ends_with_call(self) -> bool:
        """Whether the answer ends with its first call."""
        return bool(self.callable) and not self.parallel

    def prompt_tools(self) -> list[dict[str, Any]] | None:
        """The tools as the chat template takes them: what says how to decode is none of its business."""
        tools = [tool.model_dump(exclude_none=True) for tool in self.shown]
        for tool in tools:
            tool["function"].pop("strict", None)
        return tools or None


def plan_tools(request: ChatCompletionRequest, form: ModelFormat) -> ToolPlan:
    """The plan for a request; raises RequestError for tools or a choice that cannot be served."""
    tools = request.tools or []
    choice = request.tool_choice.root if request.tool_choice is not None else "auto"
    _check(tools)
    if not tools:
        if choice in ("auto", "none"):
            return ToolPlan()
        raise RequestError(
            "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.",
            param="tool_choice",
        )
    if choice == "none":
        return ToolPlan(shown=tools)
    mode, names = "auto", [tool.function.name for tool in tools]
    match choice:
        case ToolReference():
            mode, names = "required", [_known(choice, names)]
        case AllowedTools():
            mode, names = choice.allowed_tools.mode, [_known(tool, names) for tool in choice.allowed_tools.tools]
        case str():
            mode = choice
    if not form.takes_tools:
        raise RequestError(
            "This model's chat template cannot show tools to the model, so it cannot call any; leave out 'tools' or "
            "use a model that was made for tools.",
            param="tools",
            code="unsupported_parameter",
        )
    if form.tool_parser is None:
        raise RequestError(
            "The format of this model's tool calls is not known, so calls could not be told from text; the server's "
            "option --tool-parser names it, or AdapterConfig.tool_parser.",
            param="tools",
            code="unsupported_parameter",
        )
    return ToolPlan(
        shown=tools,
        callable=Tool.filter_by_names(tools, names),
        required=mode == "required",
        named=isinstance(choice, ToolReference),
        limited=isinstance(choice, AllowedTools),
        parallel=request.parallel_tool_calls is not False and not isinstance(choice, ToolReference),
    )


def _is_exact(function: FunctionDefinition) -> bool:
    """Whether calls that the model makes on its own follow the definition exactly."""
    return bool(function.strict) or isinstance(function, TextFunction)


def _check(tools: Sequence[Tool]) -> None:
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        name, parameters = tool.function.name, tool.function.parameters
        if name in seen:
            raise RequestError(
                f"Invalid 'tools[{index}].function.name': there is another tool called '{name}'; names must be unique.",
                param=f"tools[{index}].function.name",
                code="invalid_value",
            )
        seen.add(name)
        kind = (parameters or {}).get("type", "object")
        if kind not in ("object", ["object"]):
            raise RequestError(
                f"Invalid schema for function '{name}': schema must be a JSON Schema of 'type: \"object\"', "
                f"got 'type: {str(kind)[:50]!r}'.",
                param=f"tools[{index}].function.parameters",
                code="invalid_function_parameters",
            )


def _known(reference: ToolReference, names: Sequence[str]) -> str:
    name = reference.function.name
    if name not in names:
        raise RequestError(f"Tool choice '{name[:100]}' not found in 'tools' parameter.", param="tool_choice")
    return name
