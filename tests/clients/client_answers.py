"""What the script answers, and what the clients are given to ask with."""

from pydantic import BaseModel

GREETING = "Hello, wörld 👋🏽!"
REPORT = "It is 21 °C in Paris."
CAPITAL = "What is the capital of France?"


class Person(BaseModel):
    name: str
    age: int


ADA = Person(name="Ada", age=36)

WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def get_weather(city: str) -> str:
    """The weather in a city."""
    assert city == "Paris"
    return "21 degrees"


def user(text):
    return {"role": "user", "content": text}
