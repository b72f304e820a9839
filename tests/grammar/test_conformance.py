"""Other projects' JSON schemas with instances, where they are at hand.

``CVLLM_CONFORMANCE`` names a folder with ``json_schema/*.jsonl.gz`` (lines of ``schema`` and ``tests``), and
``JSON_SCHEMA_TEST_SUITE`` the official suite, as ``json/`` in the sdist of jsonschema is.

Instances are judged exactly as they are written, on one line and indented: a valid one is accepted both ways, an
invalid one neither way. The official suite's values stand for what is valid in any order of members, so of a valid one
the schema's order of properties may be the one that is accepted.
"""

import gzip
import json
import os
from pathlib import Path

import pytest
from answers import accepts, takes

from cvllm_jax.grammar import GrammarError, JsonSchemaGrammar

DIALECTS = {
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}

#: Valid in the suite, and never written: numbers in another spelling than the usual, formats as mere annotations,
#: parts of formats, and what ECMA 262 and Python read differently.
NOT_WRITTEN = (
    "const.json", "enum.json", "type.json", "format.json", "optional/ecmascript-regex.json",
    "optional/float-overflow.json", "optional/zeroTerminatedFloats.json", "optional/bignum.json", "optional/format/",
)  # fmt: skip
#: Invalid in the suite for who decodes text in strings, which validators need not do, or has U+FEFF as a space.
NOT_HEEDED = ("optional/content.json", "optional/ecmascript-regex.json")


def folder(variable):
    if variable not in os.environ:
        pytest.skip(f"{variable} names no folder with cases")
    return Path(os.environ[variable])


def test_schemas_of_many_sources(compiler, tokenizer):
    wrong, refused, verdicts = [], {}, 0
    paths = sorted((folder("CVLLM_CONFORMANCE") / "json_schema").glob("*.jsonl.gz"))
    cases = [json.loads(line) for path in paths for line in gzip.decompress(path.read_bytes()).splitlines()]
    for case in cases:
        try:
            grammar = compiler.compile(JsonSchemaGrammar(case["schema"]))
        except GrammarError as error:
            refused[case["name"]] = str(error)
            continue
        for test in case["tests"]:
            verdicts += 1
            texts = [json.dumps(test["data"], ensure_ascii=False, indent=indent) for indent in (None, 2)]
            if [takes(grammar, tokenizer, text) for text in texts] != [test["valid"]] * 2:
                wrong.append((case["name"], test["valid"], texts[0][:200]))
    print(f"\n{len(cases)} schemas, {len(refused)} refused, {verdicts} verdicts", *refused.items(), sep="\n")
    assert not wrong, "\n".join(map(str, wrong))
    assert len(refused) < 0.04 * len(cases)


@pytest.mark.slow
@pytest.mark.parametrize("draft", DIALECTS)
def test_the_official_suite(compiler, tokenizer, draft):
    wrong, refused, accepted = [], 0, 0
    root = folder("JSON_SCHEMA_TEST_SUITE") / "tests" / draft
    for path in sorted(root.rglob("*.json")):
        name = path.relative_to(root).as_posix()
        for case in json.loads(path.read_text(encoding="utf-8")):
            schema = case["schema"]
            if isinstance(schema, dict):
                schema = {"$schema": DIALECTS[draft], **schema}
            try:
                grammar = compiler.compile(JsonSchemaGrammar(schema))
            except GrammarError:
                refused += 1
                continue
            accepted += 1
            for test in case["tests"]:
                if name.startswith(NOT_WRITTEN if test["valid"] else NOT_HEEDED):
                    continue
                if accepts(grammar, tokenizer, schema, test["data"]) != test["valid"]:
                    wrong.append((name, case["description"], test["description"]))
    assert not wrong, "\n".join(map(str, wrong))
    assert accepted > refused
