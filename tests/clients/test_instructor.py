import instructor
import openai
import pytest
from client_answers import ADA, Person, user
from instructor.core import InstructorRetryException

MODES = [
    (instructor.Mode.TOOLS, "Ada with Person"),
    (instructor.Mode.JSON_SCHEMA, "Ada as JSON"),
    (instructor.Mode.JSON, "Ada as JSON"),
]


def settings(served):
    return {"base_url": served.base_url, "api_key": "none", "max_retries": 0, "timeout": 60}


@pytest.mark.parametrize(("mode", "text"), MODES)
def test_whole_and_streamed(scripted, mode, text):
    client = instructor.from_openai(openai.OpenAI(**settings(scripted)), mode=mode)
    asked = {"model": scripted.model, "messages": [user(text)], "response_model": Person, "max_retries": 0}
    person, completion = client.chat.completions.create_with_completion(**asked)
    assert person.model_dump() == ADA.model_dump()  # it is of a class derived from Person
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    asked["messages"] = [user(text.replace("Person", "PartialPerson"))]  # as instructor names the tool then
    *_, last = client.chat.completions.create_partial(**asked)
    assert last.model_dump() == ADA.model_dump()


@pytest.mark.anyio
async def test_asynchronous(scripted):
    asked = {"model": scripted.model, "messages": [user("Ada with Person")], "response_model": Person}
    async with openai.AsyncOpenAI(**settings(scripted)) as connection:
        person = await instructor.from_openai(connection).chat.completions.create(**asked)
    assert person.model_dump() == ADA.model_dump()


def test_an_unknown_model(scripted):
    client = instructor.from_openai(openai.OpenAI(**settings(scripted)))
    with pytest.raises(InstructorRetryException, match="model_not_found"):
        client.chat.completions.create(
            model="nobody", messages=[user("Ada with Person")], response_model=Person, max_retries=0
        )
