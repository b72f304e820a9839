"""Write tests/golden/tekken.json: texts as token ids, by mistral-common.

    python tests/golden/make_tekken.py

Needs mistral-common 1.13.1, whose ``data`` folder has the tokenizers. ``ids``: by file, the CRC-32 of each text's
ids, written with blanks between. The texts are those of ``pre_tokenizers.json``.
"""

import json
import zlib
from pathlib import Path

import mistral_common
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

HERE = Path(__file__).parent


def main() -> None:
    texts = json.loads((HERE / "pre_tokenizers.json").read_text(encoding="utf-8"))["texts"]
    ids = {}
    for path in sorted((Path(mistral_common.__file__).parent / "data").glob("tekken_*.json")):
        tokenizer = Tekkenizer.from_file(path)
        rows = [tokenizer.encode(text, bos=False, eos=False) for text in texts]
        ids[path.name] = [f"{zlib.crc32(' '.join(map(str, row)).encode()):08x}" for row in rows]
    (HERE / "tekken.json").write_text(json.dumps({"ids": ids}) + "\n")


if __name__ == "__main__":
    main()
