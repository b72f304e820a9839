"""What llama.cpp makes of Qwen2.5-Coder-0.5B-Instruct in Q4_K_M: tests/golden/qwen2_5_coder.json.

    python tests/golden/make_qwen2_5_coder.py GGUF

needs llama-cpp-python 0.3.36.
"""

import json
import sys
from pathlib import Path

import numpy as np
from llama_cpp import Llama

ROOT = Path(__file__).parents[2]
TEXTS = [
    "Hello, wörld!", "def f(x):\n    return x  # 12345\n", "  spaces\tand\r\nlines\n\n\n", "日本語のテキスト",
    "it's I'LL we've", "🙂 emoji 👩‍👩‍👧", "<|im_start|>user", "3.14159 1,000,000", "",
]  # fmt: skip
QUESTIONS = (
    "Write a Python function fibonacci(n) that returns the n-th Fibonacci number, with fibonacci(0) == 0.",
    "Write a Python function is_palindrome(text) that ignores case.",
    "What is a hash table? Answer in one sentence.",
)
NEW_TOKENS = 48


def main() -> None:
    model = Llama(sys.argv[1], n_ctx=2048, logits_all=True, verbose=False)
    golden = {"texts": [[text, model.tokenize(text.encode(), add_bos=False, special=False)] for text in TEXTS]}
    license_tokens = model.tokenize((ROOT / "LICENSE").read_bytes(), add_bos=False, special=False)[:257]
    model.reset()
    model.eval(license_tokens[:-1])
    scores = np.array(model.scores[:256], np.float64)
    scores -= scores.max(-1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
    golden["license_perplexity"] = float(np.exp(-scores[np.arange(256), license_tokens[1:]].mean()))
    golden["chats"] = []
    for question in QUESTIONS:
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        tokens = model.tokenize(prompt.encode(), add_bos=False, special=True)
        model.reset()
        model.eval(tokens)
        chosen, margins = [], []
        for _ in range(NEW_TOKENS):
            logits = np.array(model.scores[model.n_tokens - 1], np.float64)
            second, first = np.argsort(logits)[-2:]
            chosen.append(int(first))
            margins.append(round(float(logits[first] - logits[second]), 3))
            if first == 151645:
                break
            model.eval([int(first)])
        print(model.detokenize(chosen).decode())
        golden["chats"].append({"question": question, "prompt": tokens, "tokens": chosen, "margins": margins})
    path = Path(__file__).with_name("qwen2_5_coder.json")
    path.write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
