"""After warm-up nothing compiles, and no step copies the cache."""

import threading

import jax
import pytest

from cvllm_jax import EngineConfig, GenerationError, GenerationParams, InferenceEngine, InferenceRequest
from cvllm_jax.engine.steps import Steps
from cvllm_jax.engine.warm_up import WarmUp

compiled = []


@pytest.fixture(scope="module", autouse=True)
def listener():
    def count(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)


def workload(engine):
    """Every kind of request, alone and together, with hits, cancels and preemptions."""
    settings = [
        {"temperature": 0.0}, {"temperature": 1.0, "top_k": 5}, {"temperature": 1.0, "top_p": 0.5, "min_p": 0.1},
        {"repetition_penalty": 1.5, "logit_bias": {5: 1.0}}, {"logprobs": True, "top_logprobs": 20},
        {"frequency_penalty": 1.0, "min_tokens": 3}, {"stop_sequences": ["a"]}, {"seed": -1},
    ]  # fmt: skip
    for count in (1, 2, 3, 5, 16, 20):
        streams = [
            engine.generate_stream_sync(
                [9 + i] * (1 + 13 * i % 90), GenerationParams(max_tokens=8, **settings[i % len(settings)])
            )
            for i in range(count)
        ]
        streams[-1].cancel()
        for stream in streams:
            stream.finish()
    engine.add_request(InferenceRequest(prompt=[1, 2, 3], params=GenerationParams(max_tokens=3)))
    while engine.step():
        pass


@pytest.mark.parametrize("name", ["tiny_engine", "tight_engine"])
def test_nothing_compiles_after_warm_up(request, name):
    engine = request.getfixturevalue(name)
    assert engine.wait_until_warm(300)
    before, count = engine.stats().compilations, len(compiled)
    with engine.runner.programs.forbid_compile():
        workload(engine)
        engine.runner.reset()  # as after a step that raised
        workload(engine)
    assert engine.stats().compilations == before
    assert compiled[count:] == []


def test_the_counter_and_the_guard_notice_compilation(tiny_model_path):
    """Without warm-up steps are made when they are needed, unless that is forbidden."""
    config = EngineConfig(
        model_path=str(tiny_model_path), device="cpu", dtype="f32", max_batch_size=16, max_sequence_length=256,
        prefill_chunk_size=64, warmup=False,
    )  # fmt: skip
    with InferenceEngine.new_sync(config) as engine:
        assert engine.stats().compilations == 0
        with engine.runner.programs.forbid_compile():
            output = engine.generate_sync([5, 6], GenerationParams(max_tokens=2))
            assert "compiling is forbidden" in output.finish_reason.message
        assert len(engine.generate_sync([5, 6], GenerationParams(max_tokens=2, ignore_eos=True)).tokens) == 2
        assert engine.stats().compilations == 2


@pytest.mark.parametrize("decode_steps", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_the_cache_is_updated_in_place(make_engine, decode_steps):
    """Every step aliases the whole cache and has no room for a copy of even one layer."""
    engine = make_engine(decode_steps=decode_steps)
    assert engine.wait_until_warm(300)
    runner = engine.runner
    settings, config = runner.settings, runner.config
    steps = settings.steps
    layer = 2 * settings.num_pages[0] * config.num_key_value_heads * settings.page_size * config.head_dim * 4
    names = [f"decode {rows}" for rows in steps.decode_rows]
    if decode_steps > 1:
        names += [f"{name} x{decode_steps}" for name in names]
    names += [f"prefill {size.tokens}" for size in steps.prefill]

    def not_there():
        raise AssertionError("warm-up has made every step")

    for name in [*names, "admit"]:
        memory = runner.programs.get(name, not_there).memory_analysis()
        assert memory.alias_size_in_bytes >= layer * config.num_layers, name
        assert memory.temp_size_in_bytes < layer, name


@pytest.fixture
def second_engine(tiny_engine):
    """Makes engines that find what ``tiny_engine`` has stored."""
    assert tiny_engine.wait_until_warm(300)

    def make(**settings):
        config = tiny_engine.config
        return InferenceEngine.new_sync(
            EngineConfig(
                model_path=config.model_path, device="cpu", dtype="f32", max_batch_size=16, max_sequence_length=256,
                prefill_chunk_size=64, **settings,
            )
        )  # fmt: skip

    return make


def test_a_second_engine_neither_traces_nor_compiles(second_engine, monkeypatch):
    """Executables are stored whole, and found by what they are made from."""

    def trace(*_):
        raise AssertionError("the step should have been loaded")

    monkeypatch.setattr("cvllm_jax.engine.steps.Steps.model", trace)
    count = len(compiled)
    stages = []
    with second_engine(progress=lambda *stage: stages.append(stage)) as engine:
        assert engine.generate_sync([5], GenerationParams(max_tokens=3, ignore_eos=True)).tokens
        assert engine.wait_until_warm(60)
        steps = engine.runner.settings.steps
        assert engine.stats().compilations == len(steps.decode_rows) + len(steps.prefill) + 1
    assert len(compiled[count:]) <= 1  # what makes empty buffers, which takes no time
    assert [stage for stage in stages if stage[0] == "compiling steps"] == [
        ("compiling steps", done, 3) for done in range(4)
    ]


def test_the_first_steps_serve_every_request(second_engine, tiny_engine, monkeypatch):
    """While the others are withheld: long prompts, batches, all settings; with the tokens of a warm engine."""
    go_on = threading.Event()
    load_all = WarmUp._load_all
    monkeypatch.setattr(WarmUp, "_load_all", lambda *arguments: (go_on.wait(60), load_all(*arguments)))
    with second_engine(enable_prefix_caching=False, debug=True) as engine:
        try:
            first = engine.stats().compilations
            assert engine.warming_up and not engine.wait_until_warm(0)
            assert first == 3 and "decode 4" in engine.runner.programs and "decode 16" not in engine.runner.programs
            with engine.runner.programs.forbid_compile():
                workload(engine)
                params = GenerationParams(max_tokens=6, temperature=1.0, seed=3, ignore_eos=True, logprobs=True)
                prompts = [[200 + i] * (20 * i + 1) for i in range(11)]
                streams = [engine.generate_stream_sync(prompt, params) for prompt in prompts]
                outputs = [stream.finish() for stream in streams]
            assert engine.stats().compilations == first
        finally:
            go_on.set()
        assert [output.tokens for output in outputs] == [
            tiny_engine.generate_sync(prompt, params).tokens for prompt in prompts
        ]
        assert engine.wait_until_warm(60) and not engine.warming_up
        with engine.runner.programs.forbid_compile():
            workload(engine)


def test_an_engine_closes_while_its_steps_are_loaded(second_engine):
    second_engine().close()


def test_a_step_that_cannot_be_loaded_is_done_without(second_engine, monkeypatch):
    def fail(self, layout, form, steps):
        if layout.rows == 16:
            raise RuntimeError("no memory for this one")
        return decode(self, layout, form, steps)

    decode = Steps.decode
    monkeypatch.setattr(Steps, "decode", fail)
    with second_engine() as engine:
        assert engine.wait_until_warm(60)
        workload(engine)
        assert engine.generate_sync([5, 6], GenerationParams(max_tokens=2, ignore_eos=True)).tokens


def test_a_forbidden_step_is_a_generation_error(tiny_engine):
    programs = tiny_engine.runner.programs
    with programs.forbid_compile(), pytest.raises(GenerationError, match="step decode 999 is not compiled"):
        programs.get("decode 999", lambda: None)
    assert "decode 16" in programs and "decode 999" not in programs
