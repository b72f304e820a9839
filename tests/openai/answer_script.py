"""What scripted models of these tests say."""

from pathlib import Path

#: ChatML with hermes tools and reasoning in ``<think>``.
CHATML = (Path(__file__).parents[2] / "cvllm_jax" / "testing" / "chatml.jinja").read_text(encoding="utf-8")

WEATHER = '<tool_call>\n{"name": "get_weather", "arguments": {"location": "Tokyo"}}\n</tool_call>'
PYTHONIC = "[get_weather(location='Tokyo'), get_weather(location=\"Rome\")]"
XML = "<tool_call>\n<function=get_weather>\n<parameter=location>\nTokyo\n</parameter>\n</function>\n</tool_call>"
SCRIPT = [
    {"when": "pythonic", "say": PYTHONIC},
    {"when": "XML", "say": XML},
    {"when": "sunny", "say": "Tokyo is sunny."},
    {"when": "weather at length", "say": f"{WEATHER}\n{'and so on ' * 500}"},
    {"when": "weather in two", "say": f"<think>\nTwo.\n</think>\n\n{WEATHER}\n{WEATHER.replace('Tokyo', 'Rome')}"},
    {"when": "weather", "say": WEATHER},
    {"when": "thoughtful JSON", "say": '<think>\nWhere?\n</think>\n\n{"location": "Paris"}'},
    {"when": "JSON", "say": '{"location": "Paris"}'},
    {"when": ".", "say": "Hello there."},
]
