"""MCP servers, made with the SDK, whose tools have the same names."""

from mcp.server.mcpserver import MCPServer


def searcher(name):
    server = MCPServer(name, log_level="CRITICAL")

    @server.tool()
    def search(text: str) -> str:
        """Searches."""
        return f"{name} has {text}"

    @server.tool()
    def echo(text: str) -> str:
        return text

    return server
