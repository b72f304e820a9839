"""What the MCP conformance suite runs as the client under test: ``conformance_client.py URL``."""

import asyncio
import os
import sys

from cvllm_jax.mcp import McpClient, McpServerConfig, McpToolCall

ARGUMENTS = {"add_numbers": {"a": 5, "b": 3}}


async def main():
    scenario = os.environ["MCP_CONFORMANCE_SCENARIO"]
    async with await McpClient.connect(McpServerConfig(url=sys.argv[-1])) as client:
        for tool in await client.list_tools():
            if scenario != "initialize":
                result = await client.call_tool(McpToolCall(name=tool.name, arguments=ARGUMENTS.get(tool.name, {})))
                print(tool.name, result.text)


asyncio.run(main())
