"""An MCP server made with the SDK.

As a program it speaks over HTTP at the port that it is given, or else over its standard input and output.
"""

import asyncio
import base64
import contextlib
import os
import sys
from collections import Counter

from mcp.server.mcpserver import Context, MCPServer
from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
    ToolAnnotations,
)

#: What has happened to calls of ``sleep``.
SLEEPS = Counter()
_BYTES = base64.b64encode(b"bytes").decode()


def make_server():
    server = MCPServer("sample", log_level="CRITICAL")
    server.tool(annotations=ToolAnnotations(read_only_hint=True))(add)
    for tool in (boom, sleep, sleeps, kinds, authorization, environment, long_text):
        server.tool()(tool)
    return server


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def boom() -> str:
    raise ValueError("a secret of the server")


async def sleep(seconds: float) -> str:
    SLEEPS["begun"] += 1
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        SLEEPS["cancelled"] += 1
        raise
    return "slept"


async def sleeps() -> dict[str, int]:
    return SLEEPS


def kinds() -> CallToolResult:
    """One block of each kind."""
    text = TextResourceContents(uri="file:///t.txt", text="a text", mime_type="text/plain")
    blob = BlobResourceContents(uri="file:///b.bin", blob=_BYTES)
    return CallToolResult(
        content=[
            TextContent(type="text", text="one"),
            ImageContent(type="image", data=_BYTES, mime_type="image/png"),
            AudioContent(type="audio", data=_BYTES, mime_type="audio/wav"),
            EmbeddedResource(type="resource", resource=text),
            EmbeddedResource(type="resource", resource=blob),
            ResourceLink(type="resource_link", uri="file:///l.txt", name="l"),
        ],
        structured_content={"n": 1},
    )


def authorization(ctx: Context) -> str:
    """The Authorization header that the server got."""
    request = ctx.request_context.request
    return request.headers.get("authorization", "none") if request is not None else "no request"


def environment() -> list[str]:
    return sorted(os.environ)


def long_text(size: int) -> str:
    return "x" * size


def sample_app():
    """/mcp speaks all generations of streamable HTTP, /legacy/mcp only that with sessions, /sse the one before."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    current = make_server().streamable_http_app()
    legacy = make_server().streamable_http_app()
    sse = make_server().sse_app()

    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with current.router.lifespan_context(current), legacy.router.lifespan_context(legacy):
            yield

    async def without_discovery(scope, receive, send):
        """As a server of 2025: requests of the later generation are unknown to it."""
        headers = dict(scope.get("headers", ()))
        if headers.get(b"mcp-protocol-version", b"").startswith(b"2026"):
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await legacy(scope, receive, send)

    return Starlette(
        routes=[Mount("/legacy", app=without_discovery), *current.routes, *sse.routes],
        lifespan=lifespan,
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        import uvicorn

        uvicorn.run(sample_app(), port=int(sys.argv[1]), log_level="critical")
    else:
        make_server().run("stdio")
