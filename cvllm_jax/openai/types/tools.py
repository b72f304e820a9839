"""The tools that a request offers and which of them the model may or must call."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, RootModel

from cvllm_jax.grammar import TextGrammar
from cvllm_jax.openai.mcp_types import mcp_field
from cvllm_jax.openai.types.fields import OPEN, STRICT, optional

__all__ = ["AllowedTools", "FunctionDefinition", "TextFunction", "Tool", "ToolChoice", "ToolName", "ToolReference"]

# OpenAI's pattern with what MCP servers put into names beside it
type ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:/-]+$", max_length=128)]


class FunctionDefinition(BaseModel):
    """A function that a model may call: ``FunctionDefinition("f").with_description("...").with_parameters({...})``."""

    model_config = OPEN

    name: ToolName
    description: str | None = optional()
    parameters: dict[str, Any] | None = optional()
    """JSON schema of the arguments, an object. None: the function takes none."""
    strict: bool | None = optional()
    """Calls that the model makes on its own follow ``parameters`` exactly."""

    def __init__(self, /, *name: str, **fields: Any) -> None:
        if name:
            (fields["name"],) = name
        super().__init__(**fields)

    def with_description(self, description: str) -> Self:
        """A copy with what the model is told about when to call it."""
        return self._with(description=description)

    def with_parameters(self, parameters: dict[str, Any]) -> Self:
        """With this JSON schema of the arguments."""
        return self._with(parameters=parameters)

    def with_strict(self, strict: bool = True) -> Self:
        """A copy whose arguments are constrained to ``parameters``."""
        return self._with(strict=strict)

    def _with(self, **fields: Any) -> Self:
        return type(self)(**{**dict(self), **fields})


class TextFunction(FunctionDefinition):
    """A function of one string, ``input``, which calls that the model makes on its own follow the grammar of, too.

    Its JSON is that of any function: the grammar is for whoever makes requests within the process.
    """

    grammar: Annotated[TextGrammar, Field(exclude=True)]


class Tool(BaseModel):
    """A tool that a request offers. ``Tool.function(definition)`` makes one; ``tool.function`` is its definition."""

    model_config = OPEN

    type: Literal["function"] = "function"
    function: FunctionDefinition

    @classmethod
    def from_mcp_list(cls, tools: Iterable[Any]) -> list[Self]:
        """Tools of an MCP server, each an :class:`McpTool` or the MCP SDK's own object."""
        return [
            cls(
                function=FunctionDefinition(
                    name=mcp_field(tool, "name"),
                    description=mcp_field(tool, "description"),
                    parameters=dict(mcp_field(tool, "input_schema") or {"type": "object"}),
                )
            )
            for tool in tools
        ]

    @staticmethod
    def filter_by_names(tools: Iterable[Tool], names: Collection[str]) -> list[Tool]:
        """The tools that are called one of ``names``."""
        return [tool for tool in tools if tool.function.name in names]


def _tool_of(cls: type[Tool], definition: FunctionDefinition) -> Tool:
    """A tool that is this function."""
    return cls(function=definition)


# The API has one name for the constructor and the field. A class method gives way to the entry of an instance.
setattr(Tool, "function", classmethod(_tool_of))  # noqa: B010


class ToolReference(BaseModel):
    """Names one of the request's tools: ``{"type": "function", "function": {"name": ...}}``."""

    model_config = STRICT

    class Name(BaseModel):
        model_config = STRICT

        name: str

    type: Literal["function"]
    function: Name


class AllowedTools(BaseModel):
    """Only these of the request's tools may be called, or one of them must be."""

    model_config = STRICT

    class Choice(BaseModel):
        model_config = STRICT

        mode: Literal["auto", "required"]
        tools: Annotated[list[ToolReference], Field(min_length=1)]

    type: Literal["allowed_tools"]
    allowed_tools: Choice


class ToolChoice(
    RootModel[
        Literal["auto", "none", "required"] | Annotated[ToolReference | AllowedTools, Field(discriminator="type")]
    ]
):
    """Whether the model may, must or must not call tools, and which."""

    model_config = STRICT

    @classmethod
    def mode(cls, mode: Literal["auto", "none", "required"]) -> Self:
        """The model decides, must not call a tool, or must call at least one."""
        return cls.model_validate(mode)

    @classmethod
    def function(cls, name: str) -> Self:
        """The model must call this function."""
        return cls.model_validate({"type": "function", "function": {"name": name}})

    @classmethod
    def allowed_tools(cls, names: Iterable[str], mode: Literal["auto", "required"] = "auto") -> Self:
        """The model may call these functions only, or must call at least one of them."""
        tools = [{"type": "function", "function": {"name": name}} for name in names]
        return cls.model_validate({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}})

    Mode = mode
    Function = function
