"""The Responses API as its clients see it: a script for the model, and every answer shown to judges."""

import json
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import openai
import openresponses_types
from openai.types.responses import Response as SdkResponse
from openai.types.responses import ResponseStreamEvent
from openresponses_types import ResponseResource, WebSocketErrorEvent
from pydantic import BaseModel, TypeAdapter
from stream_lint import lint_responses, parse_sse
from websockets.sync.client import connect


def call(name, **arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def thinking(rules):
    """The rules once more, for messages that end in "Think.": what is said then has reasoning before it."""
    return [
        {"when": rf"(?s){rule['when']}.*Think\.$", "say": f"<think>\nLet me see.\n</think>\n\n{rule['say']}"}
        for rule in rules
    ]


ANSWERS = [
    {"when": "^Error: ", "say": "That did not work."},
    {"when": "exactly 3 words", "say": "Hello to you."},
    {"when": "weather", "say": call("get_weather", location="San Francisco, CA")},
    {"when": "21 degrees", "say": "It is 21 degrees."},
    {"when": "my name", "say": "Alice."},
    {"when": "Summarize the conversation", "say": "The code word is tango."},
    {"when": "count for ever", "say": "and so on " * 2000},
    {"when": "count to ten", "say": "one two three four five six seven eight nine ten"},
    {"when": "as JSON", "say": '{"sum": 5}'},
    {"when": "stop here", "say": "before STOP after"},
    # tools of MCP servers
    {"when": "add 2 and 3", "say": call("add", a=2, b=3)},
    {"when": "^5$", "say": "It is 5."},
    {"when": "add twice", "say": f"{call('add', a=2, b=3)}\n{call('add', a=1, b=4)}"},
    {"when": "add and ask", "say": f"{call('add', a=2, b=3)}\n{call('get_weather', location='Paris')}"},
    {"when": "add, ask and note", "say": "\n".join(
        (call("add", a=2, b=3), call("get_weather", location="Paris"), call("note", input="n = 1")))},
    {"when": "note it", "say": call("note", input="abc-12")},
    {"when": "search both", "say": f"{call('one__search', text='x')}\n{call('two__search', text='y')}"},
    {"when": "again and again", "say": call("echo", text="again and again")},
    {"when": "slowly", "say": call("sleep", seconds=30)},
    {"when": "take a while", "say": call("sleep", seconds=0.5)},
    {"when": "fail", "say": call("boom")},
    {"when": "ten megabytes", "say": call("long_text", size=10_000_000)},
    {"when": "who are you", "say": call("authorization")},
    {"when": "act", "say": call("act")},
    {"when": "denied", "say": "As you wish."},
    {"when": "", "say": "Hello there."},
]  # fmt: skip
RULES = [*thinking(ANSWERS), *ANSWERS]

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather for a location",
    "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
}
ENDS = ("response.completed", "response.incomplete", "response.failed")

_SDK_EVENT = TypeAdapter(ResponseStreamEvent)
_OPEN_EVENTS = {
    kind: model
    for model in vars(openresponses_types).values()
    if isinstance(model, type) and issubclass(model, BaseModel) and model.__name__.endswith("StreamingEvent")
    for kind in model.model_fields["type"].annotation
}
#: Items that Open Responses knows.
_OPEN_ITEMS = {"message", "function_call", "function_call_output", "reasoning", "compaction"}


def judge_response(body):
    """Show a response to the SDK's types, and to Open Responses' where they know its items and tools."""
    text = json.dumps(body)
    SdkResponse.model_validate_json(text, strict=True)
    if _is_open(body):
        ResponseResource.model_validate_json(text)
    return body


def judge_events(events):
    """Show decoded events of one response, in order, to all judges."""
    lines = [(event["type"], json.dumps(event)) for event in events]
    assert lint_responses([*lines, (None, "[DONE]")]) == []
    # where reasoning is asked for, its events have OpenAI's names
    plain = _is_open(events[-1]["response"]) and events[-1]["response"]["reasoning"] is None
    for kind, text in lines:
        _SDK_EVENT.validate_json(text, strict=True)
        if plain:
            _OPEN_EVENTS[kind].model_validate_json(text)
    return events


def _is_open(response):
    kinds = {item["type"] for item in response["output"]}
    return kinds <= _OPEN_ITEMS and {tool["type"] for tool in response["tools"]} <= {"function"}


def kinds(events):
    return [event["type"].removeprefix("response.") for event in events]


def output_types(response):
    return [item["type"] for item in response["output"]]


def text_of(response):
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


class Turns:
    """A WebSocket to the Responses API."""

    def __init__(self, socket):
        self.socket = socket

    def send(self, **body):
        self.socket.send(json.dumps({"type": "response.create", **body}))

    def events(self):
        """Those of the next response; an error is one event alone."""
        events = []
        while not events or events[-1]["type"] not in (*ENDS, "error"):
            events.append(json.loads(self.socket.recv(timeout=30)))
        if events[-1]["type"] == "error":
            WebSocketErrorEvent.model_validate_json(json.dumps(events[-1]), strict=False)
            return events
        return judge_events(events)

    def turn(self, **body):
        """The response to one message."""
        self.send(**body)
        return self.events()[-1]["response"]

    def refused(self, **body):
        """The error that answers one message."""
        self.send(**body)
        (event,) = self.events()
        assert event["type"] == "error"
        assert event["status"] in range(400, 600)
        return event["error"]


@dataclass(frozen=True)
class ResponsesApi:
    """A server's /v1/responses, asked over real sockets."""

    url: str
    model: str = "script"
    key: str | None = None

    @property
    def headers(self):
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def request(self, method, path, body=None, **query):
        return httpx.request(
            method, f"{self.url}/v1{path}", json=body, params=query or None, headers=self.headers, timeout=60
        )

    def post(self, path="/responses", **body):
        return self.request("POST", path, {"model": self.model, **body})

    def create(self, input, **body):  # noqa: A002
        """A response."""
        answer = self.post(input=input, **body)
        assert answer.status_code == 200, answer.text
        return judge_response(answer.json())

    def stream(self, input, **body):  # noqa: A002
        """The events of a response."""
        answer = self.post(input=input, stream=True, **body)
        assert answer.status_code == 200, answer.text
        return read_stream(answer)

    def refused(self, path="/responses", status=400, **body):
        """The error that answers a request."""
        return error_of(self.post(path, **body), status)

    def get(self, path, **query):
        return self.request("GET", path, **query)

    @contextmanager
    def socket(self, **options):
        address = f"{self.url.replace('http', 'ws', 1)}/v1/responses"
        headers = {**self.headers, **options.pop("headers", {})}
        with connect(address, additional_headers=headers, max_size=None, **options) as socket:
            yield Turns(socket)

    def sdk(self, kind=openai.OpenAI):
        return kind(base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0)


def read_stream(answer):
    """The events of a stream of server-sent events, framed as Open Responses demands."""
    assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
    assert "\r" not in answer.text
    assert not any(line.startswith("id:") for line in answer.text.splitlines())
    assert answer.text.endswith("\n\ndata: [DONE]\n\n")
    framed = parse_sse(answer.text)
    assert lint_responses(framed) == []
    return judge_events([json.loads(data) for _, data in framed[:-1]])


def error_of(answer, status=400):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error
