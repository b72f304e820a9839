"""What docs/clients.md shows."""

import re

import pytest
from model_server import ROOT
from two_tools import ANSWER

SECTIONS = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8").split("\n## ")[1:]
PROGRAMS = {
    name: block[1]
    for name, _, text in (section.partition("\n") for section in SECTIONS)
    if (block := re.search(r"```python\n(.*?)```", text, re.DOTALL))
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_of_the_page(place, capsys, name):
    program = PROGRAMS[name]
    for shown, real in (
        ("http://127.0.0.1:8000/v1", place.base_url),
        ("http://127.0.0.1:3001/mcp", place.mcp_url),
        ('"script"', f'"{place.model}"'),
    ):
        assert shown in program
        program = program.replace(shown, real)
    exec(compile(program, f"docs/clients.md, {name}", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == f"{ANSWER}\n"
