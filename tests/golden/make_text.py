"""Writes tests/golden/text.json: texts and chats as tokens of the demo model, by transformers.

Run in the reference environment (README.md in this folder), with the demo model's GGUF file:
``python tests/golden/make_text.py PATH/SmolLM2-135M-Instruct.Q4_1.gguf``.

``texts``: each text with its ids, control tokens not recognised. ``chats``: messages with the rendered prompt and its
ids, control tokens recognised.

transformers reads a GGUF vocabulary without its pre-tokenizer. SmolLM2's own, which the file names ``smollm``, sets
every digit apart; it is put in here, and matters for digits beyond ASCII alone.
"""

import json
import sys
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

TEXTS = [
    "", " ", "  ", "\n\n", "\t\t x", "Hello, world!", "  leading and trailing  ", "don't DON'T we'll I'VE it's 's",
    "1 12 123 1234 3.14159 1,000,000", "4 ½ months, x² + ١٢٣", "naïve café, Straße", "e\u0301 is not é",
    "漢字とかな、한국어", "\U0001f642 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "def f(x):\n    return x  # done\n", "<|im_start|>user\nhi<|im_end|>", "<repo_name>x<file_sep>",
    "a\u00a0b\u200bc\ufeff", "http://example.org/?a=1&b=%20", "\x00\x01\x7f", "नमस्ते สวัสดี שלום مرحبا", "word " * 20,
    "a" * 200, "!" * 40 + "?" * 3, "\r\n\r\n mixed \n\r ends",
]  # fmt: skip
CHATS = [
    [{"role": "user", "content": "Hi!"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2+2?\n"}],
    [
        {"role": "user", "content": " 漢字 & <b>é</b> "},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": ""},
    ],
]


def main(path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    texts = []
    backend.encode_special_tokens = True
    for text in TEXTS:
        texts.append({"text": text, "ids": backend.encode(text, add_special_tokens=False).ids})
    backend.encode_special_tokens = False
    chats = []
    for messages in CHATS:
        for prompt in (True, False):
            rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            ids = backend.encode(rendered, add_special_tokens=False).ids
            chats.append({"messages": messages, "add_generation_prompt": prompt, "rendered": rendered, "ids": ids})
    lines = {
        name: "[\n" + ",\n".join("    " + json.dumps(case) for case in cases) + "\n  ]"
        for name, cases in (("texts", texts), ("chats", chats))
    }
    out = Path(__file__).with_name("text.json")
    out.write_text(
        "{\n" + ",\n".join(f'  "{name}": {value}' for name, value in lines.items()) + "\n}\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
