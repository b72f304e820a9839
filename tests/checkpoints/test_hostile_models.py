"""Whole models made to hurt, opened as a user would: one sentence within a second, and no large allocation."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
import pytest
from command_line import environment
from safetensors.numpy import load_file, save_file
from tiny_llama import llama_tensors, write_gguf

from cvllm_jax import EngineConfig
from cvllm_jax.engine.opening import open_engine
from cvllm_jax.errors import Error, ModelLoadError

# where the system has them
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEGABYTE = 1 << 20
#: What a refusal may take beside the files themselves, which are small.
MOST_BYTES = 64 * MEGABYTE


@pytest.fixture
def folder(tmp_path, tiny_model_path):
    """A copy of a complete model folder, to be damaged."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in tiny_model_path.iterdir():
        if file.name != "expected.npz":
            (copy / file.name).write_bytes(file.read_bytes())
    return copy


def edit(path, **changes):
    """Change keys of a JSON file; those that become ``...`` are removed."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def engine(source):
    return open_engine(EngineConfig(model_path=str(source), dtype="f32", device="cpu", warmup=False, max_batch_size=1))


@pytest.fixture(scope="module", autouse=True)
def opened_before(tiny_model_path):
    """What the first engine of a process imports and sets up is not counted as a refusal's."""
    engine(tiny_model_path).close()


def peak():
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


@contextmanager
def limits():
    """Require one short sentence of what is done inside, quickly and in little memory."""
    before = 0
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")  # makes the present size the highest there has been
        before = peak()
    started, used = time.monotonic(), time.process_time()
    with pytest.raises(Error) as error:
        yield error
    # of the process, because other work on the machine may hold it up
    assert time.process_time() - used < 1
    assert time.monotonic() - started < 10
    if before:
        assert peak() - before < MOST_BYTES
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 1500


def refused(source, expected):
    with limits() as error:
        engine(source).close()
    assert isinstance(error.value, ModelLoadError), type(error.value)
    message = str(error.value)
    assert re.search(expected, message), message
    return message


@pytest.mark.parametrize(("changes", "expected"), [
    ({"num_hidden_layers": 10**12}, "layers"),
    ({"num_hidden_layers": 1e12}, "num_hidden_layers must be a whole number"),
    ({"num_hidden_layers": -1}, "num_hidden_layers must be"),
    ({"num_attention_heads": -4}, "num_attention_heads must be"),
    ({"num_attention_heads": 3}, "is no multiple of"),
    ({"num_attention_heads": 5, "num_key_value_heads": 5}, "must be even|misshapen"),
    ({"num_attention_heads": 2**24, "num_key_value_heads": 2**24}, "head_dim must be"),
    ({"head_dim": 2**24}, "head_dim must be"),
    ({"head_dim": 2**62}, "head_dim must be"),
    ({"vocab_size": 2**24}, "misshapen"),
    ({"vocab_size": 10**12}, "vocab_size must be"),
    ({"vocab_size": int("9" * 4000)}, "vocab_size must be"),
    ({"vocab_size": "9" * 100_000}, "vocab_size must be"),
    ({"hidden_size": 2**24, "vocab_size": 2**24}, "head_dim must be at most 8192"),
    ({"hidden_size": 0}, "hidden_size must be"),
    ({"intermediate_size": 2**24}, "misshapen"),
    ({"rope_theta": 1e400}, "rope_theta must be"),
    ({"rope_theta": "1" * 100_000}, "rope_theta must be"),
    ({"rope_theta": 10**400}, "rope_theta must be"),
    ({"rms_norm_eps": 10**400}, "rms_norm_eps must be"),
    ({"rms_norm_eps": "x" * 100_000}, "rms_norm_eps must be"),
    ({"pretraining_tp": "x" * 100_000}, "pretraining_tp"),
    ({"tie_word_embeddings": "x" * 100_000}, "tie_word_embeddings must be"),
    ({"hidden_act": "x" * 100_000}, "hidden_act"),
    ({"architectures": ["x" * 100_000]}, "is not supported"),
    ({"architectures": [["LlamaForCausalLM"]]}, "is not supported"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 1e-320}}, "malformed"),
    ({"rope_scaling": {"rope_type": "x" * 100_000}}, "is not supported"),
    ({"rope_scaling": {"rope_type": ["linear"]}}, "is not supported"),
    ({"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0] * 10**6, "short_factor": []}}, "malformed"),
    ({"eos_token_id": ["x" * 100_000]}, "eos_token_id must be"),
    ({"quantization_config": "fp8"}, "quantised with None"),
    ({"quantization_config": ["fp8"]}, "quantised with None"),
    ({"quantization_config": {"quant_method": ["fp8"]}}, "quantised with"),
    ({"quantization_config": {"quant_method": "x" * 100_000}}, "quantised with"),
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "quantised with bitsandbytes"),
])  # fmt: skip
def test_numbers_of_the_configuration(folder, changes, expected):
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", **changes)
    refused(folder, expected)


@pytest.mark.parametrize(("changes", "expected"), [
    ({"temperature": 10**400}, "temperature must be"),
    ({"top_k": 1e300}, "top_k must be"),
    ({"top_p": "x" * 100_000}, "top_p must be"),
    ({"eos_token_id": 2**31}, "eos_token_id must be"),
    ({"eos_token_id": [[[2]]]}, "eos_token_id must be"),
])  # fmt: skip
def test_settings_of_generation(folder, changes, expected):
    edit(folder / "generation_config.json", **changes)
    refused(folder, expected)


JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
NO_JSON = {
    "empty": b"",
    "cut": b'{"a": [1, 2',
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "deep and closed": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "long number": b'{"vocab_size": ' + b"9" * 100_000 + b"}",
    "many lists": b'{"a": [' + b"[]," * 1_000_000 + b"[]]}",
    "long line": b"x" * MEGABYTE,
}


@pytest.mark.parametrize("content", NO_JSON.values(), ids=NO_JSON.keys())
@pytest.mark.parametrize("name", JSON_FILES)
def test_files_that_hold_no_json_object(folder, name, content):
    (folder / name).write_bytes(content)
    refused(folder, name.replace(".", r"\."))


@pytest.mark.parametrize("name", [*JSON_FILES, "model.safetensors"])
def test_files_that_are_no_files(folder, name):
    """Links lead where they like, as in the hub's cache: what is there has to be a file that ends."""
    path = folder / name
    for make in (
        lambda: os.mkfifo(path), lambda: path.mkdir(), lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(path), lambda: path.symlink_to("absent"),
    ):  # fmt: skip
        path.unlink() if path.is_file() or path.is_symlink() or path.is_fifo() else path.rmdir()
        make()
        try:
            refused(folder, name.replace(".", r"\."))
        except AssertionError as problem:
            raise AssertionError(f"{os.lstat(path).st_mode:o} {path.is_symlink() and os.readlink(path)}") from problem


def shards(folder, weight_map, files=None):
    """Replace the weights of a folder by shards and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for name in files or ("a.safetensors",):
        save_file(tensors, folder / name)
    index = dict.fromkeys(tensors, "a.safetensors") | weight_map
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.mark.parametrize(("weight_map", "files", "expected"), [
    ({"x": "../a.safetensors"}, (), "no plain name"),
    ({"x": "/etc/passwd"}, (), "no plain name"),
    ({"x": "/etc/x.safetensors"}, (), "no plain name"),
    ({"x": "C:\\x.safetensors"}, (), "no plain name"),
    ({"x": "sub/../../x.safetensors"}, (), "no plain name"),
    ({"x": "..%2Fx.safetensors"}, (), "no plain name"),
    ({"x": "model.safetensors.index.json"}, (), "no plain name"),
    ({"x": {"x": "a.safetensors"}}, (), "no plain name"),
    ({"x": "b" * 100_000 + ".safetensors"}, (), "shard"),
    ({f"x{index}": f"{index}.safetensors" for index in range(5000)}, (), "more than the limit of 4096"),
    ({f"x{index}": "a.safetensors" for index in range(90_000)}, (), "lacks the tensor 'x0'"),
    ({"x": "a.safetensors"}, (), "lacks the tensor 'x'"),
    ({"x": "b.safetensors"}, ("a.safetensors", "b.safetensors"), "in more than one shard"),
    ({"x": "A.safetensors"}, (), "lacks 1 of 2 shards"),
])  # fmt: skip
def test_indices_of_shards(folder, weight_map, files, expected):
    shards(folder, weight_map, files)
    refused(folder, expected)


def test_an_index_that_names_itself_or_links_in_a_circle(folder):
    shards(folder, {"x": "loop.safetensors"})
    (folder / "loop.safetensors").symlink_to("other.safetensors")
    (folder / "other.safetensors").symlink_to("loop.safetensors")
    refused(folder, "loop.safetensors")
    for link in ("loop.safetensors", "other.safetensors"):
        (folder / link).unlink()
    index = folder / "model.safetensors.index.json"
    (folder / "loop.safetensors").symlink_to(index.name)  # the index as a shard
    refused(folder, "damaged")
    (folder / "loop.safetensors").unlink()
    (folder / "loop.safetensors").symlink_to("/etc/passwd")
    assert "root:" not in refused(folder, "damaged")
    (folder / "loop.safetensors").unlink()
    (folder / "loop.safetensors").symlink_to("a.safetensors")  # a shard under two names
    refused(folder, "in more than one shard")


def test_tensors_that_do_not_fit_are_all_named(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    for layer in range(2):
        del tensors[f"model.layers.{layer}.mlp.gate_proj.weight"]
        del tensors[f"model.layers.{layer}.self_attn.q_proj.weight"]
        tensors[f"model.layers.{layer}.self_attn.q_proj.lora_A.weight"] = np.ones((4, 4), np.float32)
    for index in (*range(70), 80, 90):
        tensors[f"adapter.{index}.{'x' * 300}"] = np.ones(1, np.float32)
    tensors["model.layers.0.mlp.down_proj.weight"] = np.ones((1, 1), np.float32)
    tensors["model.layers.1.self_attn.o_proj.weight"] = np.ones((2, 2, 2), np.float32)
    save_file(tensors, folder / "model.safetensors")
    message = refused(folder, "do not fit the model")
    for part in (
        "5 missing", "model.layers.0-1.mlp.gate_proj.weight", "model.layers.0-1.self_attn.q_proj.weight",
        "model.norm.weight", "74 unexpected", "adapter.0-69,80,90.x", "q_proj.lora_A.weight", "2 misshapen",
        "down_proj.weight [1, 1]", "o_proj.weight [2, 2, 2]",
    ):  # fmt: skip
        assert part in message


def test_weights_cut_short(folder):
    content = (folder / "model.safetensors").read_bytes()
    for length in (0, 7, 8, 100, len(content) // 2, len(content) - 1):
        (folder / "model.safetensors").write_bytes(content[:length])
        refused(folder, r"model\.safetensors")


def tokens(writer):
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["t", "1", *(f"t{index}" for index in range(1, 63))])
    writer.add_token_types([1] * 64)
    writer.add_token_merges(["t 1"])


@pytest.fixture(scope="module")
def gguf_content(tmp_path_factory):
    """A complete GGUF file, which opens."""
    path = write_gguf(tmp_path_factory.mktemp("gguf") / "a.gguf", llama_tensors(), extra=tokens)
    engine(path).close()
    return path.read_bytes()


def test_gguf_files_cut_short(gguf_content, tmp_path):
    path = tmp_path / "a.gguf"
    for length in (0, 3, 4, 24, 100, 700, len(gguf_content) // 2, len(gguf_content) - 1):
        path.write_bytes(gguf_content[:length])
        refused(path, r"a\.gguf")


def test_parts_of_a_split_gguf_file(tmp_path):
    """Also where other parts are missing, and for parts that say nothing else of the model."""

    def part(number, count):
        def extra(writer):
            tokens(writer)
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", count)
            writer.add_int32("split.tensors.count", 20)

        return write_gguf(tmp_path / f"m-{number + 1:05}-of-{count:05}.gguf", llama_tensors(), extra=extra)

    refused(part(0, 3), r"is part 1 of 3 of a split model.*llama-gguf-split --merge")
    later = tmp_path / "m-00002-of-00003.gguf"
    writer = gguf.GGUFWriter(later, "llama")
    writer.kv_data[0].pop("general.architecture")  # what llama.cpp leaves out of later parts
    writer.add_uint16("split.no", 1)
    writer.add_uint16("split.count", 3)
    writer.add_tensor("w", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(later, "is part 2 of 3 of a split model")


def metadata(name, value):
    def extra(writer):
        tokens(writer)
        writer.kv_data[0].pop(name, None)
        add = {int: writer.add_uint64, float: writer.add_float64, str: writer.add_string, list: writer.add_array}
        add[type(value)](name, value)

    return extra


@pytest.mark.parametrize(("name", "value", "expected"), [
    ("llama.block_count", 10**12, "no size"),
    ("llama.block_count", 1000, "announces 1000 layers but has only"),
    ("llama.block_count", -1.0, "no size"),
    ("llama.attention.head_count", 2**31 - 1, "keys|heads|head_dim|misshapen|ordered|whole number"),
    ("llama.attention.head_count", 3, "divide|multiple|misshapen"),
    ("llama.attention.head_count_kv", 3, "no multiple"),
    ("llama.attention.key_length", 2**30, "of different|head_dim"),
    ("llama.embedding_length", 2**31 - 1, "hidden_size|misshapen"),
    ("llama.context_length", 2**31 - 1, "max_position_embeddings"),
    ("llama.rope.freq_base", -1.0, "rope_theta"),
    ("llama.rope.dimension_count", 2**30, "partial_rotary_factor"),
    ("llama.rope.scaling.type", "x" * 100_000, "is not supported"),
    ("general.architecture", "x" * 60_000, "is not supported"),
    ("general.architecture", 7, "architecture"),
    ("tokenizer.ggml.model", "x" * 100_000, "tokenizer of the kind"),
    ("tokenizer.ggml.pre", "x" * 100_000, "pre-tokenizer"),
    ("tokenizer.ggml.tokens", 7, "must be a list"),
    ("tokenizer.ggml.tokens", ["x"], "tokens but 64"),
    ("tokenizer.ggml.merges", ["x" * 100_000], "which is not two tokens"),
    ("tokenizer.ggml.eos_token_id", 2**40, "end token"),
    ("tokenizer.ggml.bos_token_id", 2**40, "bos_token_id"),
    ("general.sampling.temp", "warm", "temperature must be"),
])  # fmt: skip
def test_metadata_of_gguf_files(tmp_path, name, value, expected):
    refused(write_gguf(tmp_path / "a.gguf", llama_tensors(), extra=metadata(name, value)), expected)


def test_a_sentencepiece_vocabulary_of_long_pieces(tmp_path):
    def extra(writer):
        tokens(writer)
        for name in ("model", "tokens"):
            writer.kv_data[0].pop(f"tokenizer.ggml.{name}")
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["a" * (200_000 + index) for index in range(64)])
        writer.add_token_scores([0.0] * 64)

    refused(write_gguf(tmp_path / "a.gguf", llama_tensors(), extra=extra), "200063 characters")


LOOPS = {
    "many turns": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "a huge text": "{{ 'a' * 10**10 }}",
    "a huge power": "{{ 9 ** (9 ** 9) }}",
    "a huge range": "{{ range(10**12) | list }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "doubling": "{% set ns = namespace(x='aaaaaa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "a template of itself": "{% include 'self' %}",
    "the interpreter": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "nesting": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "parentheses": "{{ " + "(" * 100_000 + ")" * 100_000 + " }}",
    "no end": "{% for",
}


@pytest.mark.parametrize("template", LOOPS.values(), ids=LOOPS.keys())
def test_templates_that_loop(folder, template):
    """Refused when the model is opened or, where a loop has to run to be seen, when the first chat comes."""
    edit(folder / "tokenizer_config.json", chat_template=template)
    with limits() as error, engine(folder) as opened:
        opened.chat_template.encode([{"role": "user", "content": "x"}])
    assert "template" in str(error.value)


def test_tokenizers(folder):
    path = folder / "tokenizer.json"
    good = json.loads(path.read_text())

    def vocabulary(**changes):
        return good | {"model": good["model"] | changes}

    for content, expected in (
        (good | {"added_tokens": [{"id": 2**31, "content": "x"}]}, "tokenizer"),
        (vocabulary(vocab={"a": 2**32 - 1}), "tokenizer"),
        (vocabulary(vocab=good["model"]["vocab"] | {"far": 2**32 - 1}), "the id 4294967295, over the limit"),
        (vocabulary(vocab={"a": 2**40}), "tokenizer"),
        (vocabulary(vocab={"a": -1}), "tokenizer"),
        (vocabulary(merges=[["absent", "gone"]]), "tokenizer"),
        (vocabulary(merges=["a b c"]), "tokenizer"),
        (good | {"model": {"type": "Unknown"}}, "tokenizer"),
        (good | {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}}, "tokenizer"),
        (good | {"decoder": {"type": "Strip", "content": "x" * 99, "start": -1, "stop": 0}}, "tokenizer"),
    ):
        path.write_text(json.dumps(content))
        refused(folder, expected)


def test_the_command_line_says_one_line(folder):
    edit(folder / "config.json", num_hidden_layers=10**12)
    command = [sys.executable, "-m", "cvllm_jax", "generate", "x", "--model", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(JAX_PLATFORMS="cpu"), timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and "layers" in done.stderr
