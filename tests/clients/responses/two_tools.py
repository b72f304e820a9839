"""A task of two tools: one of the client's own, and one of an MCP server."""

from mcp.server.mcpserver import MCPServer
from model_server import call
from pydantic import BaseModel

TASK = "How warm is Paris in Fahrenheit?"
ANSWER = "It is 69.8 °F in Paris."
DENIED = "Then it stays at 21 °C."
GREETING = "Hello, wörld 👋🏽!"

WEATHER = call("get_weather", city="Paris")
FAHRENHEIT = call("to_fahrenheit", celsius=21)
RULES = [
    {"when": "How warm is Paris", "say": f"<think>\nThe weather first.\n</think>\n\n{WEATHER}"},
    {"when": "21 degrees", "say": FAHRENHEIT},
    {"when": r"69\.8", "say": f"<think>\nThat is it.\n</think>\n\n{ANSWER}"},
    {"when": "denied|not approved|rejected", "say": DENIED},
    {"when": "Both at once", "say": f"{WEATHER}\n{FAHRENHEIT}"},
    {"when": "Ada as JSON", "say": '{"name": "Ada", "age": 36}'},
    {"when": "Ada with final_result", "say": call("final_result", name="Ada", age=36)},
    {"when": "Hand it over", "say": call("transfer_to_units")},
    {"when": "assistant.*units", "say": WEATHER},
    {"when": "hello", "say": GREETING},
]


class Person(BaseModel):
    name: str
    age: int


ADA = Person(name="Ada", age=36)


def get_weather(city: str) -> str:
    """The weather in a city."""
    assert city == "Paris"
    return "21 degrees"


WEATHER_TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


def units():
    """An MCP server."""
    server = MCPServer("units", log_level="CRITICAL")

    @server.tool()
    def to_fahrenheit(celsius: float) -> float:
        """Degrees Celsius in Fahrenheit."""
        return celsius * 9 / 5 + 32

    return server.streamable_http_app()
