import pytest
from client_answers import ADA, CAPITAL, GREETING, REPORT, Person, get_weather
from pydantic_ai import Agent, ModelHTTPError, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

pytestmark = pytest.mark.anyio


def agent(served, model=None, **settings):
    provider = OpenAIProvider(base_url=served.base_url, api_key="none")
    return Agent(OpenAIChatModel(model or served.model, provider=provider), retries=0, **settings)


async def test_whole_and_streamed(scripted):
    result = await agent(scripted).run("hello")
    assert result.output == GREETING
    assert result.usage.output_tokens == len(GREETING.encode())
    async with agent(scripted).run_stream("hello") as stream:
        parts = [part async for part in stream.stream_text(delta=True, debounce_by=None)]
        assert stream.usage.output_tokens == result.usage.output_tokens
    assert "".join(parts) == GREETING
    assert len(parts) > 3


async def test_a_tool_call_and_its_result(scripted):
    result = await agent(scripted, tools=[get_weather]).run("How is the weather?")
    assert result.output == REPORT
    assert result.usage.tool_calls == 1


async def test_a_tool_call_in_a_stream(scripted):
    async with agent(scripted, tools=[get_weather]).run_stream("How is the weather?") as stream:
        assert await stream.get_output() == REPORT


@pytest.mark.parametrize(
    ("output", "text"), [(Person, "Ada with final_result"), (NativeOutput(Person), "Ada as JSON")]
)
async def test_output_types(scripted, output, text):
    assert (await agent(scripted, output_type=output).run(text)).output == ADA
    async with agent(scripted, output_type=output).run_stream(text) as stream:
        assert await stream.get_output() == ADA


async def test_an_unknown_model(scripted):
    with pytest.raises(ModelHTTPError) as raised:
        await agent(scripted, model="nobody").run("hello")
    assert raised.value.status_code == 404


async def test_the_demo_model(demo):
    assert "Paris" in (await agent(demo).run(CAPITAL, model_settings={"temperature": 0})).output
