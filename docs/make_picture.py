"""Draws docs/images/terminal.svg from a real run: ``python docs/make_picture.py``, with the demo model installed.

What the picture shows as typed is what runs, in a shell; what it shows as printed is what came out, stderr left out.
"""

import io
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).parent / "images" / "terminal.svg"
URL = "http://127.0.0.1:8000"
MODEL = "SmolLM2-135M-Instruct.Q4_1"
SERVE = "cvllm-jax serve"
COMMANDS = (
    'cvllm-jax generate "What is the capital of France?" --temperature 0 --max-tokens 48',
    f"""curl -s {URL}/v1/chat/completions -H 'Content-Type: application/json' -d '
  {{"model": "{MODEL}", "temperature": 0,
   "messages": [{{"role": "user", "content": "Which country is Paris the capital of, and on which continent?"}}],
   "response_format": {{"type": "json_schema", "json_schema": {{"name": "place", "schema": {{"type": "object",
     "properties": {{"country": {{"type": "string"}}, "continent": {{"type": "string"}}}},
     "required": ["country", "continent"], "additionalProperties": false}}}}}}}}' |
  jq -r '.choices[0].message.content'""",
)


def shell(command: str, folder: Path) -> subprocess.Popen[str]:
    """``command`` in a shell, with this interpreter's cvllm-jax."""
    text = command.replace("cvllm-jax", f'"{sys.executable}" -m cvllm_jax', 1)
    return subprocess.Popen(
        ["bash", "-c", f"exec {text}" if command == SERVE else text],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def main() -> None:
    console = Console(record=True, width=118, file=io.StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        show(console, COMMANDS[0], shell(COMMANDS[0], folder).communicate()[0])
        server = shell(SERVE, folder)
        try:
            assert server.stdout is not None
            ready = server.stdout.readline()
            while httpx.get(f"{URL}/health").status_code != 200:
                time.sleep(0.1)
            show(console, f"{SERVE} &", ready)
            show(console, COMMANDS[1], shell(COMMANDS[1], folder).communicate()[0])
        finally:
            server.terminate()
            server.communicate()
    drawing = console.export_svg(title="cvllm-jax")
    # the reader's own fonts: no picture asks another site for one
    PICTURE.write_text(re.sub(r"@font-face \{.*?\}\n", "", drawing, flags=re.DOTALL), encoding="utf-8")


def show(console: Console, command: str, output: str) -> None:
    console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
    console.print(Text(output.strip() + "\n"))


if __name__ == "__main__":
    main()
