"""The MCP servers of the specification's example, made with the SDK, and one that misbehaves."""

import asyncio
from collections import Counter

from mcp.server.mcpserver import Context, MCPServer

#: What has happened to calls of ``slow``.
SLOW = Counter()


def fs():
    server = MCPServer("fs", log_level="CRITICAL")

    @server.tool()
    def read_file(path: str) -> str:
        """Reads a file."""
        return f"# Demo\nThis is {path}."

    @server.tool()
    def delete_file(path: str) -> str:
        raise AssertionError(f"{path} must not be deleted")

    @server.tool()
    def search(text: str) -> str:
        return f"fs has {text}"

    return server


def github():
    server = MCPServer("github", log_level="CRITICAL")

    @server.tool()
    def create_issue(title: str, body: str, ctx: Context) -> str:
        """Opens an issue."""
        assert ctx.request_context.request.headers["authorization"] == "Bearer TOKEN"
        return f"issue 7: {title}"

    return server


def slack():
    server = MCPServer("slack", log_level="CRITICAL")

    @server.tool()
    def post_message(channel: str, text: str) -> str:
        """Posts a message."""
        return f"posted to {channel}"

    @server.tool()
    def search(text: str) -> str:
        return f"slack has {text}"

    return server


def odd():
    server = MCPServer("odd", log_level="CRITICAL")

    @server.tool()
    async def slow(seconds: float = 30) -> str:
        SLOW["begun"] += 1
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            SLOW["cancelled"] += 1
            raise
        return "at last"

    @server.tool()
    def fail() -> str:
        raise ValueError("broken")

    @server.tool()
    def large(size: int) -> str:
        return "x" * size

    return server
