"""Write tests/golden/pre_tokenizers.json: what llama.cpp makes of texts under each of its pre-tokenizer names.

    python tests/golden/make_pre_tokenizers.py LIBRARIES

``LIBRARIES`` is the folder ``bins/linux-x64`` of the npm package ``@node-llama-cpp/linux-x64`` 3.22.1, which holds
llama.cpp compiled. Runs in the project's own environment, whose list of names it takes.

``tokens``, ``merges``: a vocabulary learnt from the texts without splitting them, so that its tokens lie across every
boundary that a pre-tokenizer may draw. ``ids``: by name, the CRC-32 of each text's ids, written with blanks between.
"""

import ctypes
import json
import random
import sys
import tempfile
import zlib
from pathlib import Path

import gguf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from cvllm_jax.text.pre_tokenizers import PRE_TOKENIZERS

HERE = Path(__file__).parent
TEXTS = [
    "", " ", "  ", "\t\n \r\n\r\n  x \n\n\n", "Hello, World!", " HelloWorld iPhone's DON'T we'Ve I'll 'Re it'S",
    "1 22 333 4444 55555 1,000,000.25 x2 v1.2.3 ٣٢١ ½ ²³", "a\u0301bc naïve ÉCOLE Straße ǅungla ﬁne",
    "漢字かな交じり、カタカナ。한국어 문장！", "नमस्ते สวัสดี שלום مرحبا Ελληνικά Жук",
    "Ꞑꞑ ꬰ ა𝐀 𐐀Ⴧ", "x==y; // c\n\tfoo_bar(1234)\n\n   \n end  ", "«q» “q” — … -- ... !!!???",
    "👩\u200d👩\u200d👧 🙂🙂 \u00a0\u3000\u200b", "http://example.org/a?b=c&d=%20#e", "$5 + 6 <= 7 ^ 8 ~ 9 | `10`",
    "'s't're've'm'll'd 'S'T'RE'VE'M'LL'D", "\n\n\n   \n", "end of line.\nNext/\n/again\r\n",
    "__init__ #tag @name {a: [b]}",
]  # fmt: skip
PARTS = [*" \n\t\r'.,!?$+<=>^~|`()-/\"#_&*%@;…。，、।", "  ", "\n\n", "'s", "'LL", "hello", "World", "iPhone", "ABC"]
PARTS += ["1", "22", "333", "4444", "é", "ß", "漢字", "かな", "カナ", "한국어", "ไทย", "हिन्दी", "١٢", "½", "🙂"]
PARTS += ["\u00a0", "\u3000"]
VOCAB_ONLY = 72  # the byte of llama_model_params
PARAMETER_BYTES = 80


def texts() -> list[str]:
    draw = random.Random(0)
    return TEXTS + ["".join(draw.choices(PARTS, k=draw.randint(2, 14))) for _ in range(60)]


def learn() -> dict[str, object]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=800, initial_alphabet=alphabet, show_progress=False, max_token_length=12)
    tokenizer.train_from_iterator(texts(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return {"tokens": sorted(model["vocab"], key=model["vocab"].get), "merges": [" ".join(m) for m in model["merges"]]}


class LlamaCpp:
    """llama.cpp's own tokenizer."""

    class Parameters(ctypes.Structure):
        _fields_ = [("bytes", ctypes.c_uint8 * PARAMETER_BYTES)]

    def __init__(self, libraries: Path) -> None:
        for name in ("libggml-base.so", "libggml.v*.so"):
            ggml = ctypes.CDLL(str(next(libraries.glob(name))), mode=ctypes.RTLD_GLOBAL)
        ggml.ggml_backend_load_all_from_path(str(libraries).encode())
        self.library = ctypes.CDLL(str(next(libraries.glob("libllama.v*.so"))))
        self.library.llama_model_default_params.restype = self.Parameters
        self.library.llama_model_load_from_file.argtypes = [ctypes.c_char_p, self.Parameters]
        self.library.llama_model_load_from_file.restype = ctypes.c_void_p
        self.library.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
        self.library.llama_model_get_vocab.restype = ctypes.c_void_p
        self.library.llama_tokenize.argtypes = [
            ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool,
            ctypes.c_bool,
        ]  # fmt: skip

    def tokenize(self, path: Path, texts: list[str]) -> list[list[int]] | None:
        """Ids of texts, or None where llama.cpp refuses the file."""
        parameters = self.library.llama_model_default_params()
        parameters.bytes[VOCAB_ONLY] = 1
        model = self.library.llama_model_load_from_file(str(path).encode(), parameters)
        if not model:
            return None
        vocabulary, ids = self.library.llama_model_get_vocab(model), (ctypes.c_int32 * 4096)()
        rows = []
        for text in texts:
            data = text.encode()
            count = self.library.llama_tokenize(vocabulary, data, len(data), ids, len(ids), False, False)
            rows.append(ids[:count])
        return rows


def main(libraries: Path) -> None:
    judge, vocabulary, expected = LlamaCpp(libraries), learn(), {}
    for pre in PRE_TOKENIZERS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            writer = gguf.GGUFWriter(path, "llama")
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre(pre)
            writer.add_token_list(vocabulary["tokens"])
            writer.add_token_merges(vocabulary["merges"])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.close()
            rows = judge.tokenize(path, texts())
        if rows is None:
            print(f"{pre}: unknown to this llama.cpp")
        else:
            expected[pre] = [f"{zlib.crc32(' '.join(map(str, ids)).encode()):08x}" for ids in rows]
    data = {**vocabulary, "texts": texts(), "ids": expected}
    (HERE / "pre_tokenizers.json").write_text(json.dumps(data, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
