import pytest
from agents import (
    Agent,
    HostedMCPTool,
    OpenAIResponsesModel,
    OpenAIResponsesWSModel,
    Runner,
    function_tool,
    set_tracing_disabled,
    tool_namespace,
)
from agents.mcp import MCPServerStreamableHttp
from openai import AsyncOpenAI
from two_tools import ADA, ANSWER, DENIED, TASK, Person, get_weather

pytestmark = pytest.mark.anyio
set_tracing_disabled(True)


@pytest.fixture
async def client(place):
    async with AsyncOpenAI(base_url=place.base_url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(params=[OpenAIResponsesModel, OpenAIResponsesWSModel], ids=["http", "websocket"])
async def model(place, client, request):
    model = request.param(model=place.model, openai_client=client)
    yield model
    await model.close()


@pytest.fixture(params=["whole", "streamed"])
def run(request):
    """Runs an agent to its end."""

    async def run(agent, task, **options):
        if request.param == "whole":
            return await Runner.run(agent, task, **options)
        result = Runner.run_streamed(agent, task, **options)
        async for _ in result.stream_events():
            pass
        return result

    return run


def agent(model, *tools, **settings):
    return Agent(name="units", instructions="Be exact.", model=model, tools=list(tools), **settings)


def hosted(place, approval="never", decide=None):
    return HostedMCPTool(tool_config={**place.hosted, "require_approval": approval}, on_approval_request=decide)


def kinds(result):
    return [item.type.removesuffix("_item") for item in result.new_items]


@pytest.mark.parametrize("options", [{}, {"auto_previous_response_id": True}], ids=["replayed", "stored"])
async def test_a_hosted_server(model, place, run, options):
    result = await run(agent(model, function_tool(get_weather), hosted(place)), TASK, **options)
    assert result.final_output == ANSWER
    assert kinds(result) == [
        "mcp_list_tools", "reasoning", "tool_call", "tool_call_output", "tool_call", "reasoning", "message_output",
    ]  # fmt: skip
    assert result.context_wrapper.usage.requests == 2


async def test_a_server_of_the_client(model, place, run):
    async with MCPServerStreamableHttp(params={"url": place.mcp_url}) as server:
        result = await run(agent(model, function_tool(get_weather), mcp_servers=[server]), TASK)
    assert result.final_output == ANSWER
    assert result.context_wrapper.usage.requests == 3


@pytest.mark.parametrize(("approve", "answer"), [(True, ANSWER), (False, DENIED)])
async def test_approvals_by_a_function(model, place, run, approve, answer):
    asked = []

    def decide(request):
        asked.append((request.data.name, request.data.arguments))
        return {"approve": approve, "reason": "because"}

    result = await run(agent(model, function_tool(get_weather), hosted(place, "always", decide)), TASK)
    assert result.final_output == answer
    assert asked == [("to_fahrenheit", '{"celsius": 21}')]
    assert "mcp_approval_response" in kinds(result)


@pytest.mark.parametrize(("approve", "answer"), [(True, ANSWER), (False, DENIED)])
async def test_a_run_that_waits_for_approval(model, place, run, approve, answer):
    asking = agent(model, function_tool(get_weather), hosted(place, "always"))
    waiting = await run(asking, TASK)
    (interruption,) = waiting.interruptions
    state = waiting.to_state()
    (state.approve if approve else state.reject)(interruption)
    assert (await run(asking, state)).final_output == answer


async def test_a_conversation(client, model, place, run):
    conversation = await client.conversations.create()
    result = await run(agent(model, function_tool(get_weather), hosted(place)), TASK, conversation_id=conversation.id)
    assert result.final_output == ANSWER
    items = await client.conversations.items.list(conversation.id, order="asc")
    assert [item.type async for item in items][-2:] == ["reasoning", "message"]


async def test_a_namespace(model, place, run):
    tools = tool_namespace(name="earth", description="Of the earth.", tools=[function_tool(get_weather)])
    result = await run(agent(model, *tools, hosted(place)), TASK)
    assert result.final_output == ANSWER
    assert next(item.raw_item.namespace for item in result.new_items if item.type == "tool_call_item") == "earth"


async def test_an_output_type(model, run):
    assert (await run(agent(model, output_type=Person), "Ada as JSON")).final_output == ADA


async def test_handoffs(model, place, run):
    """The first agent's only tool is the way to the second."""
    second = agent(model, function_tool(get_weather), hosted(place))
    first = Agent(name="first", model=model, handoffs=[second])
    result = await run(first, "Hand it over.")
    assert result.final_output == ANSWER
