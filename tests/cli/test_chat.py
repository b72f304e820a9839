"""`cvllm-jax chat` and `cvllm-jax generate`."""

import signal
import time

import pytest
from command_line import run, start

TEXT = "Hello, wörld 👋."


def test_generate_prints_the_answer():
    assert run("generate", "hi", "--model", "m")[:2] == (0, f"{TEXT}\n")


def test_generate_reads_standard_input():
    assert run("generate", "-", "-m", "m", "--raw", "--max-tokens", "5", stdin="Once")[:2] == (0, "Hello\n")


def test_generate_takes_sampling_options():
    status, out, _ = run("generate", "hi", "-m", "m", "--system", "be brief", "--seed", "-3", "--max-tokens", "4")
    assert (status, out) == (0, "Hell\n")


def test_a_prompt_that_does_not_fit_is_one_line():
    status, _, err = run("generate", "x" * 600, "-m", "m")
    assert status == 1
    assert err.splitlines()[-1].startswith("error: This model's maximum context length is 512 tokens")


def test_a_conversation(cache):
    status, out, _ = run("chat", "m", stdin="hi\n\nand?\n/reset\n/help\n/nonsense\n/quit\nnot reached\n")
    assert status == 0
    assert out.count(TEXT) == 2
    assert "forgotten" in out
    assert "Ctrl-C" in out
    assert "there is no command /nonsense" in out


def test_the_end_of_the_input_ends_the_conversation(cache):
    status, out, err = run("chat", "m", stdin="hi\n")
    assert status == 0
    assert TEXT in out
    assert err == "loading weights ...\n"


def test_a_turn_that_is_refused_leaves_no_trace(cache):
    status, out, err = run("chat", "m", stdin="raise!\nhi\n")
    assert status == 0
    assert "error: the chat template raised" in err
    assert out.count(TEXT) == 1


def test_the_history_grows_and_is_forgotten(cache):
    # The stub's context is 512 tokens of one byte: three turns of 150 do not fit, with a reset they do.
    turn = "x" * 150 + "\n"
    assert "maximum context length" in run("chat", "m", stdin=turn * 3)[2]
    assert "maximum context length" not in run("chat", "m", stdin=turn * 2 + "/reset\n" + turn)[2]


@pytest.mark.parametrize("ending", ["/quit\n", ""])
def test_ctrl_c_interrupts_an_answer(cache, ending):
    process = start("chat", "m", script="text='word ', forever=True, delay=0.01")
    process.stdin.write("hi\n")
    process.stdin.flush()
    assert process.stdout.read(20).count("word") >= 2
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    out, err = process.communicate(ending, timeout=10)
    assert time.monotonic() - started < 3
    assert process.returncode == 0, err
    assert "(stopped)" in out
