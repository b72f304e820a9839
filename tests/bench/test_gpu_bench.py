"""The GPU benchmark's harness, without a GPU: what is recorded when cases end, fail, crash, hang or run out of time."""

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from bench.gpu.kernels import difference
from bench.gpu.record import Record, derived
from bench.gpu.supervise import Group, run_groups
from bench.gpu.table import duration, table
from bench.gpu.timing import time_program

ROOT = Path(__file__).parents[2]

#: A child with cases that do what their name says.
CHILD = """
    import os, sys, time
    from bench.gpu.report import Report, job

    report, wanted = Report(), job()
    print("a library's words")

    def measure(name, add):
        add(seconds=0.5, bytes_moved=100)
        if name == "raise":
            raise ValueError("two\\nlines")
        if name == "crash":
            os.abort()
        if name == "hang":
            time.sleep(60)
        if name == "wrong":
            add(status="wrong")
        if name == "fatal":
            raise RuntimeError("an illegal access")
        add(flops=30)

    usable = lambda: "fatal" not in last
    last = []

    def case(name):
        def run(add):
            last[:] = [name]
            measure(name, add)
        return name, run

    report.facts(process=wanted["kind"])
    report.run([case(name) for name in wanted["cases"]], wanted["skip"], usable)
"""


@pytest.fixture
def record(tmp_path):
    made = Record(tmp_path / "out.json", {"date": "today"})
    made.add_ceilings("before", {"copy_bytes_per_second": 400.0, "matmul_flops_per_second": 600.0})
    return made


@pytest.fixture
def group(tmp_path):
    """Groups by the names of their cases."""
    script = tmp_path / "child.py"
    script.write_text(textwrap.dedent(CHILD))

    def make(*cases, name="group", case_seconds=20.0):
        return Group(
            name=name, command=[sys.executable, str(script)], job={"kind": "test", "cases": cases},
            case_seconds=case_seconds, environment={"PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    return make


def outcomes(record, group="group"):
    return {name: figures["status"] for name, figures in read(record)["groups"][group]["cases"].items()}


def read(record):
    return json.loads(record.path.read_text())


def test_figures_and_what_follows_from_them(record, group, tmp_path):
    run_groups([group("a", "wrong")], record, tmp_path / "log", budget=60)
    content = read(record)["groups"]["group"]
    assert content["cases"]["a"] == {
        "seconds": 0.5, "bytes_moved": 100, "bytes_per_second": 200.0, "of_copy": 0.5, "flops": 30,
        "flops_per_second": 60.0, "of_matmul": 0.1, "status": "ok",
    }  # fmt: skip
    assert outcomes(record) == {"a": "ok", "wrong": "wrong"}
    assert content["process"] == "test" and content["seconds"] >= 0
    assert "a library's words" in (tmp_path / "log").read_text()


def test_what_fails_is_recorded_and_the_rest_goes_on(record, group, tmp_path):
    run_groups([group("raise", "a", "crash", "b", "fatal", "c")], record, tmp_path / "log", budget=60)
    assert outcomes(record) == {"raise": "error", "a": "ok", "crash": "error", "b": "ok", "fatal": "error", "c": "ok"}
    cases = read(record)["groups"]["group"]["cases"]
    assert cases["raise"]["error"] == "ValueError: two lines" and cases["raise"]["of_copy"] == 0.5
    assert "ended with status -6" in cases["crash"]["error"]
    assert cases["fatal"]["error"] == "RuntimeError: an illegal access"


def test_a_hung_case_is_ended(record, group, tmp_path):
    run_groups([group("hang", "a", case_seconds=2.0)], record, tmp_path / "log", budget=60)
    assert outcomes(record) == {"hang": "error", "a": "ok"}
    assert read(record)["groups"]["group"]["cases"]["hang"]["error"] == "it took longer than 2 s"


def test_time_is_shared_and_what_does_not_fit_is_left_out(record, group, tmp_path):
    began = time.monotonic()
    groups = [group("a", "hang", "b"), group("c", name="next")]
    run_groups(groups, record, tmp_path / "log", budget=6.0)
    assert time.monotonic() - began < 12
    assert outcomes(record) == {"a": "ok", "hang": "error", "b": "left out"}
    assert read(record)["groups"]["group"]["cases"]["hang"]["error"] == "its time was up"
    assert outcomes(record, "next") == {"c": "ok"}


def test_no_time_and_no_process(record, group, tmp_path):
    run_groups([group("a")], record, tmp_path / "log", budget=0)
    assert read(record)["groups"]["group"]["error"] == "no time was left for this group"
    broken = Group(name="broken", command=[sys.executable, "-c", "import no_such_module"], job={})
    run_groups([broken], record, tmp_path / "log", budget=30)
    assert "No module named 'no_such_module'" in read(record)["groups"]["broken"]["error"]


def test_a_record_is_continued_and_whole_after_every_write(record, tmp_path):
    record.start_group("old")
    record.add("old", "a", seconds=1.0)
    again = Record(record.path, {"date": "tomorrow"})
    again.start_group("new")
    again.add("new", "b", seconds=1.0, bytes_moved=10)
    found = read(again)
    assert found["date"] == "tomorrow" and set(found["groups"]) == {"old", "new"}
    assert "of_copy" not in found["groups"]["new"]["cases"]["b"]  # the ceilings are of the run before
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_shares_need_their_ceiling():
    assert derived({"seconds": 2.0, "flops": 8}, {}) == {"flops_per_second": 4.0}
    assert derived({"flops": 8}, {"matmul_flops_per_second": 1.0}) == {}


def test_differences_of_outputs():
    a = np.random.default_rng(0).standard_normal((7, 33)).astype(np.float32)
    b = a + 1e-3 * np.random.default_rng(1).standard_normal(a.shape).astype(np.float32)
    expected = np.linalg.norm((a - b).astype(np.float64)) / np.linalg.norm(b.astype(np.float64))
    assert difference(jnp.asarray(a), jnp.asarray(b), exactly=False) == pytest.approx(expected, rel=1e-4)
    assert np.isnan(difference(jnp.asarray(a).at[3, 3].set(jnp.nan), jnp.asarray(b), exactly=False))
    pages = jnp.asarray(a).astype(jnp.bfloat16).at[0].set(jnp.nan)
    assert difference((pages,), (pages,), exactly=True) == 0  # bits, so that unused places may be NaN
    assert difference((pages.at[1, 0].set(9),), (pages,), exactly=True) == pytest.approx(1 / a.size)
    with pytest.raises(ValueError, match="types differ"):
        difference(pages, a, exactly=True)
    with pytest.raises(ValueError, match="shapes differ"):
        difference(a[1:], a, exactly=False)


def test_times():
    calls = []

    def run():
        calls.append(0)
        time.sleep(0.002)
        return jnp.zeros(4)

    timing = time_program(run, 2, rounds=3, round_seconds=0.01)
    assert 0.001 <= timing.seconds < 0.01 and timing.spread >= 0 and 0.9 < timing.host_share <= 1
    assert len(calls) >= 3 + 1 + 3


def test_the_table_has_the_columns_there_are(record, group, tmp_path):
    run_groups([group("a", "raise")], record, tmp_path / "log", budget=60)
    data = {**read(record), "device": {"kind": "none"}, "versions": {}, "commit": "x"}
    lines = table(data).splitlines()
    heading = next(line for line in lines if "of copying" in line)
    assert "of matmul" in heading and "host gap" not in heading
    assert any(line.split()[:4] == ["a", "500", "ms", "50%"] for line in lines)
    assert any("error ValueError: two lines" in line for line in lines)
    assert [duration(x) for x in (2.5, 0.0123, 4.2e-6)] == ["2.5 s", "12.3 ms", "4.2 us"]


def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, "-m", "bench.gpu"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("there is no GPU to measure: JAX runs on cpu here")
    assert len(done.stderr.strip().splitlines()) == 1


def test_lengths_are_what_their_description_says():
    found = json.loads((ROOT / "cvllm_jax" / "benchmarks" / "conversation_lengths.json").read_text())
    pairs = np.array(found["pairs"])
    assert pairs.shape == (1000, 2) and pairs.min() >= 4 and pairs.max() <= 1024
    assert [round(mean) for mean in pairs.mean(0)] == [161, 338]
    assert "No length is taken from ShareGPT" in found["about"]


@pytest.mark.parametrize("options", [
    pytest.param(["--only", "kernels", "--group", "attention of others"], id="a group", marks=pytest.mark.slow),
    pytest.param(["--only", "engine", "--model", "llama-3.2-1b"], id="engine", marks=pytest.mark.slow),
    pytest.param(["--only", "kernels"], id="kernels", marks=pytest.mark.slow),
])  # fmt: skip
def test_the_rehearsal_ends_without_errors(options, tmp_path):
    """Tiny shapes on the CPU, kernels in the interpreter: no line of the benchmark runs first on a GPU."""
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "bench.gpu", "--rehearse", "--minutes", "15", "--out", str(out), *options]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    found = json.loads(out.read_text())
    assert found["rehearsal"] and len(found["ceilings"]) == 2 and found["groups"]
    for group in found["groups"].values():
        assert "error" not in group and {case["status"] for case in group["cases"].values()} == {"ok"}, group


def test_a_bare_step_leaves_the_engine_as_it_was(make_engine):
    from bench.gpu.bare_step import bare_step_seconds
    from cvllm_jax import GenerationParams

    engine = make_engine(enable_prefix_caching=False)
    params = GenerationParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    before = engine.generate_sync([5, 6, 7], params).tokens, engine.stats().compilations
    assert 0 < bare_step_seconds(engine.runner, 2, 100, repeats=2) < 5
    with pytest.raises(ValueError, match="do not fit"):
        bare_step_seconds(engine.runner, 16, 10**7, repeats=1)
    assert (engine.generate_sync([5, 6, 7], params).tokens, engine.stats().compilations) == before
