"""After warm-up nothing compiles, and no step copies the cache."""

import jax
import pytest

from cvllm_jax import EngineConfig, GenerationError, GenerationParams, InferenceEngine, InferenceRequest

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


@pytest.mark.parametrize("decode_steps", [1, 5])
def test_the_cache_is_updated_in_place(make_engine, decode_steps):
    """Every step aliases the whole cache and has no room for a copy of even one layer."""
    runner = make_engine(decode_steps=decode_steps).runner
    settings, config = runner.settings, runner.config
    steps = settings.steps
    layer = 2 * settings.num_pages[0] * config.num_key_value_heads * settings.page_size * config.head_dim * 4
    names = [f"decode {rows}" for rows in steps.decode_rows]
    if decode_steps > 1:
        names += [f"{name} x{decode_steps}" for name in names]
    names += [f"prefill {blocks}" for blocks in steps.prefill_blocks]

    def not_there():
        raise AssertionError("warm-up has made every step")

    for name in [*names, "admit"]:
        memory = runner.programs.get(name, not_there).memory_analysis()
        assert memory.alias_size_in_bytes >= layer * config.num_layers, name
        assert memory.temp_size_in_bytes < layer, name


def test_a_second_engine_loads_what_the_first_compiled(tiny_engine):
    """Executables are stored whole, so the next start neither traces nor compiles."""
    count = len(compiled)
    stages = []
    config = tiny_engine.config
    with InferenceEngine.new_sync(
        EngineConfig(
            model_path=config.model_path, device="cpu", dtype="f32", max_batch_size=16, max_sequence_length=256,
            prefill_chunk_size=64, progress=lambda *stage: stages.append(stage),
        )
    ) as engine:  # fmt: skip
        assert engine.generate_sync([5], GenerationParams(max_tokens=3, ignore_eos=True)).tokens
    assert compiled[count:] == []
    steps = engine.runner.settings.steps
    total = len(steps.decode_rows) + len(steps.prefill_blocks) + 1
    assert [stage for stage in stages if stage[0] == "compiling steps"][-1] == ("compiling steps", total, total)


def test_a_forbidden_step_is_a_generation_error(tiny_engine):
    programs = tiny_engine.runner.programs
    with programs.forbid_compile(), pytest.raises(GenerationError, match="step decode 999 is not compiled"):
        programs.get("decode 999", lambda: None)
    assert "decode 16" in programs and "decode 999" not in programs
