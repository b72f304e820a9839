"""pydantic-ai's OpenAIResponsesModel."""

import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent, MCPServerTool, NativeOutput
from pydantic_ai.capabilities import NativeTool
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from two_tools import ADA, ANSWER, GREETING, TASK, Person, get_weather

pytestmark = pytest.mark.anyio


@pytest.fixture
async def model(place):
    async with AsyncOpenAI(base_url=place.base_url, api_key="none", max_retries=0, timeout=60) as client:
        yield OpenAIResponsesModel(place.model, provider=OpenAIProvider(openai_client=client))


@pytest.fixture(params=["whole", "streamed"])
def run(request):
    """The output of an agent's run, and the kinds of parts that the model and the tools have said."""

    async def run(agent, task):
        if request.param == "whole":
            result = await agent.run(task)
            output = result.output
        else:
            async with agent.run_stream(task) as result:
                output = await result.get_output()
        return output, [part.part_kind for message in result.all_messages() for part in message.parts]

    return run


async def test_whole_and_streamed(model, run):
    output, kinds = await run(Agent(model), "hello")
    assert (output, kinds) == (GREETING, ["user-prompt", "text"])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"openai_previous_response_id": "auto"},
        {"openai_store": False, "openai_include_encrypted_reasoning": True},
        {"openai_send_reasoning_ids": False},
    ],
    ids=["replayed", "stored", "store-false", "without-ids"],
)
async def test_a_hosted_server(model, place, run, settings):
    hosted = NativeTool(MCPServerTool(id="units", url=place.mcp_url))
    agent = Agent(model, tools=[get_weather], capabilities=[hosted], model_settings=settings)
    output, kinds = await run(agent, TASK)
    assert output == ANSWER
    assert kinds.count("tool-return") == 1
    listed = 1 if "openai_previous_response_id" in settings else 2  # lists of tools are not sent back
    assert kinds.count("builtin-tool-return") == listed + 1


async def test_a_server_of_the_client(model, place, run):
    agent = Agent(model, tools=[get_weather], toolsets=[MCPToolset(place.mcp_url)])
    output, kinds = await run(agent, TASK)
    assert (output, kinds.count("tool-return")) == (ANSWER, 2)


@pytest.mark.parametrize(("output", "text"), [(Person, "Ada with final_result"), (NativeOutput(Person), "Ada as JSON")])
async def test_output_types(model, run, output, text):
    assert (await run(Agent(model, output_type=output), text))[0] == ADA
