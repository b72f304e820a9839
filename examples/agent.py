"""An agent with a tool of its own and those of MCP servers: python agent.py MODEL [URL ...]"""

import sys

from cvllm_jax.responses import ResponsesSession


def get_weather(city: str) -> dict[str, str | float]:
    """The weather in a city, now."""
    return {"city": city, "sky": "clear", "celsius": 21.0}


builder = ResponsesSession.builder().model_path(sys.argv[1]).add_tool(get_weather)
for number, url in enumerate(sys.argv[2:], 1):
    builder.add_mcp_server(f"server{number}", url)
with builder.build_sync() as session:
    result = session.run_conversation_sync("What is the weather in Paris?")
for call in result.tool_calls_executed:
    print(f"{call.function.name}({call.function.arguments}): {call.result}")
print(result.final_message)
