"""A request's tools: what the model sees of them, who runs them, and which it may or must call."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from cvllm_jax.mcp import McpTool, unique_names
from cvllm_jax.openai.errors import RequestError
from cvllm_jax.openai.types import Tool, ToolCall
from cvllm_jax.openai.types import ToolChoice as ChatToolChoice
from cvllm_jax.responses.agent.mcp_tools import McpAgentTool, ToolServers, mcp_agent_tools
from cvllm_jax.responses.agent.types import AgentTool, Approval
from cvllm_jax.responses.types import (
    AllowedTools,
    CustomChoice,
    CustomTool,
    FunctionChoice,
    FunctionTool,
    HostedMcpTool,
    McpChoice,
    ResponseRequest,
    ToolChoice,
)

__all__ = ["Toolset", "allowed_listing"]


def allowed_listing(hosted: HostedMcpTool, listing: Sequence[McpTool]) -> list[McpTool]:
    """Of the tools that a server has, those that the request lets the model see."""
    return [tool for tool in listing if hosted.allows(tool.name, read_only=_read_only(tool))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolset:
    """Everything that the model can call for one response."""

    tools: Sequence[AgentTool]
    mcp: Mapping[str, McpAgentTool]
    """Tools of MCP servers by the name that the model sees."""
    asking: Collection[str]
    """Those of them whose calls wait for approval."""
    namespaced: Mapping[str, tuple[str, FunctionTool | CustomTool]]
    """The client's tools of namespaces, with these, by the name that the model sees."""

    @classmethod
    def of(
        cls,
        request: ResponseRequest,
        servers: ToolServers,
        listings: Mapping[str, Sequence[McpTool]],
        *,
        asks_by_default: bool,
    ) -> Toolset:
        """The request's tools.

        Arguments:
            listings: the tools of its MCP servers by label, those that the model may see.

        Raises RequestError for two tools with one name.
        """
        own: list[FunctionTool | CustomTool] = [*request.function_tools, *request.custom_tools]
        names = [tool.name for tool in own]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise RequestError(
                f"Invalid 'tools': there is another tool named '{repeated}'; names must be unique.",
                param="tools",
                code="invalid_value",
            )
        inner = [(space.name, tool) for space in request.namespaces for tool in space.client_tools]
        namespaced = dict(zip(unique_names([(space, tool.name) for space, tool in inner], names), inner))
        own += [tool.model_copy(update={"name": name}) for name, (_, tool) in namespaced.items()]
        taken = [*names, *namespaced]
        mcp = {tool.name: tool for tool in mcp_agent_tools(servers, listings, taken=taken)}
        hosted = {tool.server_label: tool for tool in request.mcp_tools}
        asking = {
            name
            for name, tool in mcp.items()
            if hosted[tool.label].asks(tool.tool.name, read_only=_read_only(tool.tool), default=asks_by_default)
        }
        return cls(
            tools=[
                *(AgentTool(definition=tool.chat_tool()) for tool in own),
                *(tool.agent_tool for tool in mcp.values()),
            ],
            mcp=mcp,
            asking=asking,
            namespaced=namespaced,
        )

    @property
    def definitions(self) -> list[Tool] | None:
        """The tools as the model sees them."""
        return [tool.definition for tool in self.tools] or None

    async def approval(self, call: ToolCall) -> Approval:
        """An ``ApprovalPolicy``: who made the request decides, where it says so."""
        return Approval.ASK if call.function.name in self.asking else Approval.ALLOW

    def chat_choice(self, choice: ToolChoice | None) -> ChatToolChoice | None:
        """The request's ``tool_choice`` as chat completions have it.

        Raises RequestError where it names no tool.
        """
        match choice:
            case None | "none" | "auto" | "required":
                return None if choice is None else ChatToolChoice.mode(choice)
            case AllowedTools():
                names = [name for entry in choice.tools for name in self._chosen(entry, required=False)]
                if not names:
                    raise RequestError(
                        "Invalid 'tool_choice': it allows none of the request's tools.",
                        param="tool_choice.tools",
                        code="invalid_value",
                    )
                return ChatToolChoice.allowed_tools(list(dict.fromkeys(names)), choice.mode)
            case _:
                names = self._chosen(choice, required=True)
                if len(names) == 1 and not (isinstance(choice, McpChoice) and choice.name is None):
                    return ChatToolChoice.function(names[0])
                return ChatToolChoice.allowed_tools(names, "required")

    def _chosen(self, choice: object, *, required: bool) -> list[str]:
        """The names that the model sees of the tools that one choice means."""
        match choice:
            case FunctionChoice(name=name) | CustomChoice(name=name):
                # a tool of an MCP server answers to its bare name, too
                found = [tool.name for tool in self.tools if tool.name == name]
                found = found or [shown for shown, tool in self.mcp.items() if tool.tool.name == name]
                wanted = f"'{name[:100]}'"
            case McpChoice(server_label=label, name=tool_name):
                found = [
                    shown
                    for shown, tool in self.mcp.items()
                    if tool.label == label and tool_name in (None, tool.tool.name, shown)
                ]
                wanted = f"'{tool_name[:100]}' of server '{label}'" if tool_name else f"of server '{label}'"
            case _:
                return []
        if not found and required:
            raise RequestError(
                f"Tool choice {wanted} not found in 'tools' parameter.", param="tool_choice", code="invalid_value"
            )
        return found


def _read_only(tool: McpTool) -> bool:
    return bool((tool.annotations or {}).get("readOnlyHint"))
