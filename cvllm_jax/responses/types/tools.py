"""The tools that a request offers and which of them the model may or must call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_serializer

from cvllm_jax.grammar import TextGrammar
from cvllm_jax.openai.types import FunctionDefinition, TextFunction
from cvllm_jax.openai.types import Tool as ChatTool
from cvllm_jax.openai.types.fields import STRICT, optional
from cvllm_jax.openai.types.tools import ToolName

__all__ = [
    "AllowedTools",
    "ApprovalFilter",
    "CustomChoice",
    "CustomTool",
    "FunctionChoice",
    "FunctionTool",
    "GrammarInput",
    "HostedMcpTool",
    "McpChoice",
    "NamespaceTool",
    "OtherTool",
    "TextInput",
    "Tool",
    "ToolChoice",
    "ToolFilter",
]


def _type_of(*known: str) -> Discriminator:
    """Tells tools apart by their type; one that is not ``known`` is "other"."""

    def kind(value: Any) -> str:
        kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
        return kind if kind in known else "other"

    return Discriminator(kind)


class FunctionTool(BaseModel):
    """A function that the client runs. All its keys are in the JSON, be they null."""

    model_config = STRICT

    type: Literal["function"] = "function"
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def chat_tool(self) -> ChatTool:
        """The function as chat completions have it."""
        fields = self.model_dump(exclude={"type"}, exclude_none=True)
        return ChatTool(function=FunctionDefinition(**fields))


class TextInput(BaseModel):
    """Any text."""

    model_config = STRICT

    type: Literal["text"] = "text"


class GrammarInput(BaseModel):
    """Text that a grammar allows."""

    model_config = STRICT

    type: Literal["grammar"] = "grammar"
    syntax: Literal["lark", "regex"]
    definition: Annotated[str, Field(min_length=1)]


class CustomTool(BaseModel):
    """A tool whose input is text, which the client runs."""

    model_config = STRICT

    type: Literal["custom"] = "custom"
    name: ToolName
    description: str | None = optional()
    format: Annotated[TextInput | GrammarInput, Field(discriminator="type")] = TextInput()

    def chat_tool(self) -> ChatTool:
        """A function of one string, ``input``: what models know. They are shown the grammar that it follows."""
        text = {"type": "string"}
        fields: dict[str, Any] = {"name": self.name, "description": self.description}
        if isinstance(self.format, GrammarInput):
            grammar = TextGrammar(self.format.syntax, self.format.definition)
            kind = "Lark grammar" if grammar.syntax == "lark" else "regular expression"
            text["description"] = f"A text of this {kind}:\n{grammar.definition}"
            fields["grammar"] = grammar
        fields["parameters"] = {
            "type": "object",
            "properties": {"input": text},
            "required": ["input"],
            "additionalProperties": False,
        }
        return ChatTool(function=TextFunction(**fields) if "grammar" in fields else FunctionDefinition(**fields))


class ToolFilter(BaseModel):
    """Some tools of an MCP server. A filter that says nothing matches none."""

    model_config = STRICT

    tool_names: list[str] | None = optional()
    read_only: bool | None = optional()

    @property
    def says_nothing(self) -> bool:
        return self.tool_names is None and self.read_only is None

    def matches(self, name: str, read_only: bool) -> bool:
        return (
            not self.says_nothing
            and (self.tool_names is None or name in self.tool_names)
            and (self.read_only is None or read_only == self.read_only)
        )


class ApprovalFilter(BaseModel):
    model_config = STRICT

    always: ToolFilter | None = optional()
    never: ToolFilter | None = optional()


class HostedMcpTool(BaseModel):
    """The tools of an MCP server, which this server runs.

    What may be secret (``authorization``, ``headers``, the path and query of ``server_url``) is in no dump and
    no ``repr``.
    """

    model_config = STRICT

    type: Literal["mcp"] = "mcp"
    server_label: Annotated[str, Field(pattern=r"^[a-zA-Z][a-zA-Z0-9_-]*$", max_length=64)]
    server_url: Annotated[str | None, Field(repr=False)] = optional()
    server_description: str | None = optional()
    authorization: Annotated[str | None, Field(repr=False, exclude=True)] = None
    headers: Annotated[dict[str, str] | None, Field(repr=False, exclude=True)] = None
    allowed_tools: list[str] | ToolFilter | None = None
    require_approval: Literal["always", "never"] | ApprovalFilter | None = "always"
    connector_id: str | None = optional()
    tunnel_id: str | None = optional()
    defer_loading: bool | None = optional()

    def allows(self, name: str, *, read_only: bool = False) -> bool:
        """Whether the model may see the server's tool ``name``."""
        allowed = self.allowed_tools
        if isinstance(allowed, ToolFilter):
            return allowed.says_nothing or allowed.matches(name, read_only)
        return allowed is None or name in allowed

    def asks(self, name: str, *, read_only: bool = False, default: bool = True) -> bool:
        """Whether a call of the server's tool ``name`` waits for approval; ``default`` where the request is silent."""
        wanted = self.require_approval if "require_approval" in self.model_fields_set else None
        if wanted is None:
            return default
        if not isinstance(wanted, ApprovalFilter):
            return wanted == "always"
        if wanted.always is not None and wanted.always.matches(name, read_only):
            return True
        if wanted.never is not None:
            return not wanted.never.matches(name, read_only)
        return wanted.always is None and default

    @field_serializer("server_url")
    def _shown_url(self, url: str | None) -> str | None:
        return None if url is None else shown_url(url)


def shown_url(url: str) -> str:
    """Scheme and host of an address: the rest may hold a secret."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "<redacted>"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    rest = "/<redacted>" if parts.path.strip("/") or parts.query or parts.fragment else ""
    return f"{parts.scheme}://{host}{port}{rest}"


class OtherTool(BaseModel):
    """A tool of a kind that this server does not have."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: str


class _NamespacedFunction(FunctionTool):
    name: str


class _NamespacedCustomTool(CustomTool):
    name: str


class NamespaceTool(BaseModel):
    """The client's tools under one name, such as those of an MCP server that it runs: codex sends these."""

    model_config = STRICT

    type: Literal["namespace"] = "namespace"
    name: str
    description: str | None = optional()
    tools: list[
        Annotated[
            Annotated[_NamespacedFunction, Tag("function")]
            | Annotated[_NamespacedCustomTool, Tag("custom")]
            | Annotated[OtherTool, Tag("other")],
            _type_of("function", "custom"),
        ]
    ] = []

    @property
    def client_tools(self) -> list[FunctionTool | CustomTool]:
        """Those of a kind that models can call; their names may be any text."""
        return [tool for tool in self.tools if not isinstance(tool, OtherTool)]


type Tool = Annotated[
    Annotated[FunctionTool, Tag("function")]
    | Annotated[CustomTool, Tag("custom")]
    | Annotated[HostedMcpTool, Tag("mcp")]
    | Annotated[NamespaceTool, Tag("namespace")]
    | Annotated[OtherTool, Tag("other")],
    _type_of("function", "custom", "mcp", "namespace"),
]


class FunctionChoice(BaseModel):
    model_config = STRICT

    type: Literal["function"] = "function"
    name: str


class CustomChoice(BaseModel):
    model_config = STRICT

    type: Literal["custom"] = "custom"
    name: str


class McpChoice(BaseModel):
    """One tool of an MCP server, or any of them."""

    model_config = STRICT

    type: Literal["mcp"] = "mcp"
    server_label: str
    name: str | None = optional()


class AllowedTools(BaseModel):
    """Only these of the request's tools may be called, or one of them must be."""

    model_config = STRICT

    type: Literal["allowed_tools"] = "allowed_tools"
    mode: Literal["auto", "required"] = "auto"
    tools: Annotated[
        list[
            Annotated[
                Annotated[FunctionChoice, Tag("function")]
                | Annotated[CustomChoice, Tag("custom")]
                | Annotated[McpChoice, Tag("mcp")]
                | Annotated[OtherTool, Tag("other")],
                _type_of("function", "custom", "mcp"),
            ]
        ],
        Field(min_length=1, max_length=128),
    ]


type ToolChoice = (
    Literal["none", "auto", "required"]
    | Annotated[FunctionChoice | CustomChoice | McpChoice | AllowedTools, Field(discriminator="type")]
)
