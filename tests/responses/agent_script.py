"""What the scripted model of these tests says, and the tools it calls."""

import asyncio
import json
from pathlib import Path

from cvllm_jax.openai import ChatCompletionRequest, FunctionDefinition, Message, Tool
from cvllm_jax.responses.agent.types import AgentTask, AgentTool, ToolOutcome

#: What the scripted model's chat template is.
CHATML = (Path(__file__).parents[2] / "cvllm_jax" / "testing" / "chatml.jinja").read_text(encoding="utf-8")


def call(name, **arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


#: The first rule that is found in the last user or tool message is what the model answers.
RULES = [
    {"when": "^Error: ", "say": "That did not work."},
    {"when": "Read the README.md file", "say": call("read_file", path="README.md")},
    {"when": "# Demo", "say": call("create_issue", title="Summary", body="A demo.")},
    {"when": "issue 7", "say": call("post_message", channel="#dev", text="See issue 7.")},
    {"when": "posted", "say": "I have opened issue 7 and told #dev."},
    {"when": "slowly", "say": call("slow")},
    {"when": "fail", "say": call("fail")},
    {"when": "ten megabytes", "say": call("large", size=10_000_000)},
    {"when": "delete", "say": call("delete_file", path="README.md")},
    {"when": "search", "say": f"{call('fs__search', text='a')}\n{call('slack__search', text='b')}"},
    {"when": "weather in Paris", "say": call("get_weather", city="Paris")},
    {"when": "celsius", "say": "It is 21 °C in Paris."},
    {"when": "sum is 5", "say": "<think>\nGood.\n</think>\n\nIt is 5."},
    {"when": "add 2 and 3", "say": f"<think>\nA sum.\n</think>\n\nLet me see.\n{call('add', a=2, b=3)}"},
    {"when": "add twice", "say": f"{call('add', a=2, b=3)}\n{call('add', a=1, b=4)}"},
    {"when": "add and ask", "say": f"{call('add', a=2, b=3)}\n{call('client', question='Why?')}"},
    {"when": "ask the client", "say": call("client", question="Why?")},
    {"when": "without end", "say": call("repeat", text="without end")},
    {"when": "use nothing", "say": call("nothing")},
    {"when": "write badly", "say": '<tool_call>\n{"name": "add", "arguments": [1, 2]}\n</tool_call>'},
    {"when": "call at length", "say": call("repeat", text="and so on " * 20)},
    {"when": "at length", "say": "and so on " * 200},
    {"when": "JSON", "say": '{"sum": 5}'},
    {"when": "", "say": "Hello there."},
]


def tool(name, run=None, **properties):
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return AgentTool(definition=Tool(function=FunctionDefinition(name).with_parameters(schema)), run=run)


async def add(call):
    arguments = call.to_mcp_call().arguments
    return ToolOutcome(text=f"The sum is {arguments['a'] + arguments['b']}.")


async def repeat(call):
    return ToolOutcome(text=call.to_mcp_call().arguments["text"])


ADD = tool("add", add, a={"type": "integer"}, b={"type": "integer"})
CLIENT = tool("client", None, question={"type": "string"})
REPEAT = tool("repeat", repeat, text={"type": "string"})
TOOLS = (ADD, CLIENT, REPEAT)


def task(text, *, chat=None, **fields):
    request = ChatCompletionRequest(**{"messages": [Message.user(text)], **(chat or {})})
    return AgentTask(chat=request, **{"tools": TOOLS, **fields})


def run(coroutine):
    """As asyncio.run, which must end within a few seconds."""
    return asyncio.run(asyncio.wait_for(coroutine, 30))
