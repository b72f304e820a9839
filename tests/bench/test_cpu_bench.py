"""The comparison with llama.cpp, without a peer: ratios, tables, documents, checks of answers, what is missing."""

import json
import sys

import pytest

from bench import peers
from bench.cpu import documents, offline, table
from bench.cpu.rows import ROWS
from bench.peers import install
from bench.worker import Worker
from cvllm_jax.benchmarks.in_process import Case
from cvllm_jax.benchmarks.workload import Lengths

RATE = next(row for row in ROWS if row.unit == "tokens/s")
TIME = next(row for row in ROWS if row.unit == "ms")
OURS, SLOW, FAST = "cvllm-jax", "llama.cpp, prebuilt", "llama.cpp, built here"


@pytest.fixture
def record():
    samples = {OURS: [300.0, 310.0, 290.0], SLOW: [90.0, 100.0, 95.0], FAST: [150.0, 140.0, 160.0]}
    return {
        "date": "2026-01-02", "commit": "abc", "title": "A model", "threads": 2, "versions": {"jax": "1"},
        "machine": {"cpu": "A CPU", "cores": 2, "instructions": ["avx2"]},
        "engines": {name: {"versions": {}} for name in samples},
        "samples": {
            "prefill of 512": samples, "decode 1 at 512": {OURS: [9.0], FAST: [10.0]},
            "serving first token p95": {OURS: [100.0], "llama.cpp's server": [400.0]},
        },
        "agreement": {"decode 1 at 512": {FAST: 0.5}},
        "serving": {"requests": 32, "runs": {OURS: [
            {"token": {"p50": 9.0}, "between": {"p99": 20.0}, "peak_memory": 10**9},
        ]}},
    }  # fmt: skip


def test_the_faster_peer_counts(record):
    engines = record["samples"]["prefill of 512"]
    assert table.best_peer(RATE, engines) == FAST and table.ratio(RATE, engines) == 2.0
    assert table.best_peer(TIME, {OURS: [1.0], "a": [3.0], "b": [2.0]}) == "b"
    assert table.ratio(TIME, {OURS: [1.0]}) is None
    assert RATE.reached(RATE.least, RATE.least) and not RATE.reached(1.0, RATE.least)
    assert TIME.reached(0.1, TIME.least) and not TIME.reached(3.0, TIME.least)


def test_tables(record):
    lines = table.text_table(record).splitlines()
    assert lines[1].split()[:8] == ["prefill,", "512", "tokens,", "tokens/s", "1.5", "3", "2.00", "300"]
    marked = table.markdown_table(record)
    assert "| **2.00** | 300 (290 to 310) | 95.0 (90.0 to 100.0) | 150 (140 to 160) |  |" in marked
    assert "| 0.90 |" in marked and "| **0.25** |" in marked
    heights = {line.count("|") for line in marked.splitlines()}
    assert len(heights) == 1


def test_documents_are_written_between_their_markers(record, tmp_path, monkeypatch):
    results, docs = tmp_path / "results", tmp_path / "docs"
    results.mkdir()
    docs.mkdir()
    for date, title in (("2026-01-01", "Before"), ("2026-01-02", "A model")):
        (results / f"cpu-smollm2-135m-{date}-x.json").write_text(json.dumps({**record, "title": title}))
    truth = {"date": "2026-01-02", "commit": "abc", "positions": 2000, "kl": {OURS: 0.0049, FAST: 0.0035}}
    (results / "truth-smollm2-135m-2026-01-02-x.json").write_text(json.dumps(truth))
    for path in (docs / "performance.md", tmp_path / "README.md"):
        path.write_text(f"before\n{documents.BEGIN}\nold\n{documents.END}\nafter\n")
    for name, value in (("RESULTS", results), ("ROOT", tmp_path), ("IMAGES", docs / "images")):
        monkeypatch.setattr(documents, name, value)
    monkeypatch.setattr(documents, "plot", lambda record, path: None)
    documents.write()
    page, readme = (docs / "performance.md").read_text(), (tmp_path / "README.md").read_text()
    for text in (page, readme):
        assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
        assert "A model" in text and "Before" not in text and "**2.00**" in text
    assert "| cvllm-jax | 0.0049 |" in page and "commit abc, jax 1; medians" in page and "50%" in page
    documents.write()
    assert (docs / "performance.md").read_text() == page
    assert table.text_truth(truth).endswith(f"2026-01-02 at abc: {OURS} 0.0049, {FAST} 0.0035")


def test_answers_are_looked_at(tiny_engine):
    case = Case(name="decode", phase="decode", prompts=[[1]], outputs=[10])
    text = tiny_engine.tokenize("These are ten tokens of a text.")[:10]
    offline.check_answers(case, {"a": [text]}, tiny_engine.tokenizer)
    for said, reason in (([text[:9]], "were asked for"), ([[5] * 10], "repeats one token")):
        with pytest.raises(RuntimeError, match=reason):
            offline.check_answers(case, {"a": said}, tiny_engine.tokenizer)
    assert offline.agreement({OURS: [[1, 2, 3, 4]], "b": [[1, 2, 9, 4]]}) == {"b": 0.5}


def test_a_worker_answers_and_its_end_is_told(tmp_path):
    script = "from bench.worker import work; work(lambda: (lambda job: (job['n'], 2.0, [[7]]), {'versions': {}}))"
    worker = Worker([sys.executable, "-c", script], documents.ROOT)
    assert worker.facts == {"versions": {}} and worker.run({"n": 10}) == (5.0, [[7]])
    worker.close()
    with pytest.raises(RuntimeError, match="ended without an answer"):
        Worker([sys.executable, "-c", "pass"], tmp_path).run({})


def test_a_peer_that_cannot_be_built_is_left_out_with_the_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    for module in (peers, install):
        monkeypatch.setattr(module, "FOLDER", tmp_path)
        monkeypatch.setattr(module, "PYTHON", tmp_path / "python" / "bin" / "python")
        monkeypatch.setattr(module, "SERVER", tmp_path / "llama.cpp" / "bin" / "llama-server")
        monkeypatch.setattr(module, "NODE", tmp_path / "node")
    install.main()
    assert peers.failures() == {
        "llama-cpp-python": "a C++ compiler is not installed", "llama.cpp's server": "a C++ compiler is not installed",
        "node-llama-cpp": "npm is not installed",
    }  # fmt: skip
    assert "left out: npm is not installed" in capsys.readouterr().out
    assert peers.in_process() == [] and peers.server_command(tmp_path, 1, threads=2, slots=1, context=1) == []


def test_long_answers_can_be_left_out():
    pairs = [pair for pair, _ in zip(Lengths(longest=100).pairs(), range(200))]
    assert max(output for _, output in pairs) <= 100 and len(set(pairs)) > 50
