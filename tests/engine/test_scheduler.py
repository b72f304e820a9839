"""The scheduler: any schedule gives each request the tokens that it gets alone, and every page comes back."""

import pickle

import pytest
from fake_model import END, ScriptedConstraint, Serving, alone, next_token
from hypothesis import given, settings
from hypothesis import strategies as st

from cvllm_jax.engine.pages import first_page, most_pages
from cvllm_jax.engine.paging import step_tokens
from cvllm_jax.engine.plan import StepOutput
from cvllm_jax.params import FinishReason

PAGE = 4
requests = st.tuples(
    st.lists(st.integers(1, 2), min_size=1, max_size=30),  # few letters, so that prefixes are shared
    st.integers(1, 12),  # max_tokens
    st.integers(0, 2),  # seed
    st.integers(0, 3),  # min_tokens
    st.integers(0, 12),  # arrives at this step
    st.one_of(st.none(), st.integers(0, 25)),  # is cancelled at this step
)


@settings(max_examples=250, deadline=None)
@given(
    st.lists(requests, min_size=1, max_size=9), st.integers(0, 1),
    st.lists(st.integers(0, 13), min_size=2, max_size=2), st.integers(1, 5),
    st.sampled_from([(4, 4), (4, 8), (4, 3), (2, 16), (8, 1)]), st.booleans(), st.booleans(),
    st.sets(st.integers(0, 25), max_size=2), st.sampled_from([1, 1, 2, 5]),
    st.sampled_from([(None,), (1,), (6,), (None, 1), (None, 6), (None, 9), (None, 14)]),
)  # fmt: skip
def test_every_schedule_gives_the_tokens_of_a_lone_run(
    wanted, ahead, more_pages, slots, sizes, chunked, caching, failing, steps, windows
):
    """Whatever the cache groups and their sizes, from what the longest request needs alone."""
    block, budget = sizes
    step_size = step_tokens(block, budget, chunked=chunked, decode_steps=steps)
    pages = [
        most_pages(30 + 12, window, PAGE, step_size) + more for window, more in zip(windows, more_pages, strict=False)
    ]
    serving = Serving(
        pages=pages, page_size=PAGE, slots=slots, block=block, budget=budget, chunked=chunked, caching=caching,
        ahead=ahead, steps=steps, windows=windows,
    )  # fmt: skip
    added = {}
    step = 0
    while len(added) < len(wanted) or not serving.scheduler.idle:
        for index, (prompt, max_tokens, seed, least, arrives, _) in enumerate(wanted):
            if arrives == step:
                added[index] = serving.add(prompt, max_tokens, seed=seed, min_tokens=min(least, max_tokens))
        for index, request in added.items():
            if wanted[index][5] == step:
                serving.cancel(request)
        serving.fail_step() if step in failing else serving.step()
        assert len(serving.scheduler.running) <= slots
        check_pages(serving, max(step_size, budget) if chunked else None)
        step += 1
        assert step < 3000
    assert serving.all_free()
    for index, request in added.items():
        prompt, max_tokens, seed, least, _, cancelled = wanted[index]
        expected = alone(prompt, max_tokens, seed=seed, min_tokens=min(least, max_tokens), windows=windows)
        output = serving.output(request)
        if output.finish_reason is FinishReason.Cancelled:
            assert cancelled is not None and output.tokens == expected[: len(output.tokens)]
        elif output.finish_reason == FinishReason.Error("no more"):
            assert failing and output.tokens == expected[: len(output.tokens)]
        else:
            assert output.tokens == expected
            assert output.finish_reason is (FinishReason.Length if len(expected) == max_tokens else FinishReason.Stop)


def check_pages(serving, step_size):
    """Every page is in hand or held by running sequences, which hold what their window and a step need and no more."""
    for group, pool in enumerate(serving.pools):
        held = {page for s in serving.scheduler.running for page in s.tables[group].pages}
        assert pool.available == pool.capacity - len(held)
        for sequence in serving.scheduler.running:
            table, known = sequence.tables[group], min(sequence.computed, len(sequence.tokens))
            assert len(set(table.pages)) == len(table.pages)
            assert table.end * PAGE >= sequence.computed and table.first <= known // PAGE
            assert table.first <= first_page(sequence.computed, pool.window, PAGE)
            assert len(table.pages) <= most_pages(len(sequence.tokens) + 9, pool.window, PAGE, step_size)


constrained_requests = st.tuples(
    st.lists(st.integers(1, 2), min_size=1, max_size=20),
    st.integers(1, 20),  # length of the answer
    st.booleans(),  # is constrained
    st.integers(0, 12),  # arrives at this step
    st.one_of(st.none(), st.integers(0, 25)),  # is cancelled at this step
)


@settings(max_examples=250, deadline=None)
@given(
    st.lists(constrained_requests, min_size=1, max_size=7), st.integers(0, 1), st.booleans(), st.integers(11, 24),
    st.integers(1, 5), st.sampled_from([1, 1, 3]), st.integers(1, 20), st.booleans(),
)  # fmt: skip
def test_constrained_answers_in_every_schedule(wanted, ahead, halves, pages, slots, steps, max_tokens, windowed):
    """Each gets what its constraint allows, from masks that belong to its text; free neighbours notice nothing."""
    windows = (None, 9) if windowed else (None,)
    serving = Serving(
        pages=[pages, pages // 2][: len(windows)], page_size=PAGE, slots=slots, ahead=ahead, halves=halves,
        steps=steps, windows=windows,
    )  # fmt: skip
    added = {}
    step = 0
    while len(added) < len(wanted) or not serving.scheduler.idle:
        for index, (prompt, length, constrained, arrives, _) in enumerate(wanted):
            if arrives == step:
                constraint = ScriptedConstraint(prompt, length) if constrained else None
                added[index] = serving.add(prompt, max_tokens, constraint=constraint)
        for index, request in added.items():
            if wanted[index][4] == step:
                serving.cancel(request)
        serving.step()
        step += 1
        assert step < 3000
    assert serving.all_free()
    for index, request in added.items():
        prompt, length, constrained, _, cancelled = wanted[index]
        free = alone(prompt, max_tokens, windows=windows)
        whole = ScriptedConstraint(prompt, length).whole() if constrained else free
        output = serving.output(request)
        if output.finish_reason is FinishReason.Cancelled:
            assert cancelled is not None and output.tokens == whole[: len(output.tokens)]
        else:
            assert output.tokens == whole[:max_tokens]


drafting_requests = st.tuples(
    st.lists(st.integers(1, 2), min_size=1, max_size=30),
    st.integers(1, 50),  # max_tokens
    st.integers(0, 2),  # seed
    st.sampled_from(["free", "free", "constrained", "at least 9"]),
    st.integers(0, 12),  # arrives at this step
    st.one_of(st.none(), st.integers(0, 25)),  # is cancelled at this step
)


@settings(max_examples=250, deadline=None)
@given(
    st.lists(drafting_requests, min_size=1, max_size=7), st.integers(0, 1), st.booleans(), st.integers(20, 40),
    st.integers(1, 5), st.integers(1, 6), st.integers(0, 6), st.sampled_from([(None,), (1,), (2,), (None, 1)]),
    st.sets(st.integers(0, 25), max_size=2),
)  # fmt: skip
def test_drafts_change_no_answer(wanted, ahead, halves, pages, slots, drafts, more_rows, windows, failing):
    """With a window of 1 the fake model goes round in circles, so that many drafts are right; else most are wrong."""
    serving = Serving(
        pages=pages, page_size=PAGE, slots=slots, ahead=ahead, halves=halves, windows=windows, drafts=drafts,
        rows=(slots, slots + more_rows),
    )  # fmt: skip
    added = {}
    step = 0
    while len(added) < len(wanted) or not serving.scheduler.idle:
        for index, (prompt, max_tokens, seed, kind, arrives, _) in enumerate(wanted):
            if arrives == step:
                constraint = ScriptedConstraint(prompt, max_tokens) if kind == "constrained" else None
                least = min(9, max_tokens) if kind == "at least 9" else 0
                added[index] = serving.add(prompt, max_tokens, seed=seed, constraint=constraint, min_tokens=least)
        for index, request in added.items():
            if wanted[index][5] == step:
                serving.cancel(request)
        serving.fail_step() if step in failing else serving.step()
        check_pages(serving, None)
        step += 1
        assert step < 3000
    assert serving.all_free()
    assert all(sum(row.rows for row in plan.decode) <= slots + more_rows for plan in serving.runner.plans)
    for index, request in added.items():
        prompt, max_tokens, seed, kind, _, _ = wanted[index]
        least = min(9, max_tokens) if kind == "at least 9" else 0
        free = alone(prompt, max_tokens, seed=seed, windows=windows, min_tokens=least)
        whole = ScriptedConstraint(prompt, max_tokens).whole() if kind == "constrained" else free
        output = serving.output(request)
        if output.finish_reason in (FinishReason.Cancelled, FinishReason.Error("no more")):
            assert output.tokens == whole[: len(output.tokens)]
        else:
            assert output.tokens == whole


@pytest.mark.parametrize("ahead", [0, 1])
def test_right_drafts_save_steps_and_wrong_ones_are_given_up(ahead):
    circling = Serving(pages=60, ahead=ahead, windows=(1,), drafts=4, rows=(2, 8))
    request = circling.add([1, 2], 100, ignore_eos=True)
    circling.run()
    assert len(circling.output(request).tokens) == 100 and len(circling.runner.plans) < 50
    assert circling.scheduler.speculation.accepted_tokens > 50
    endless = Serving(pages=600, ahead=ahead, drafts=4, rows=(2, 8))
    endless.add([next_token([n]) for n in range(1500)], 200, ignore_eos=True)  # has most pairs, and says nothing
    endless.run()
    many = Serving(pages=200, ahead=ahead, windows=(1,), drafts=4, rows=(1, 2, 4, 8, 16), slots=8, budget=100)
    for _ in range(8):
        many.add([1, 2], 100, ignore_eos=True)
    many.run()
    assert many.scheduler.speculation.drafted_tokens == 0  # all rows of their step are taken
    assert endless.scheduler.speculation.accepted_tokens < 5 < endless.scheduler.speculation.drafted_tokens < 40


def test_nothing_is_generated_past_max_tokens_or_after_the_end():
    """Steps that are known to be the last are not overrun, and the token that follows an end token is dropped."""
    serving = Serving(ahead=1)
    lengths = [serving.add([1, 2, 3], max_tokens, ignore_eos=True) for max_tokens in (1, 2, 5)]
    serving.run()
    assert [len(serving.output(request).tokens) for request in lengths] == [1, 2, 5]
    assert sum(len(plan.decode) for plan in serving.runner.plans) == 0 + 1 + 4
    prompt = next(p for p in ([1, n] for n in range(1000)) if len(alone(p, 10)) == 3)
    ended = serving.add(prompt, 10)
    serving.run()
    assert serving.output(ended).finish_reason is FinishReason.Stop
    assert END not in serving.output(ended).tokens


def test_steps_run_in_one_go_only_while_nobody_waits():
    serving = Serving(slots=2, budget=100, pages=60, steps=4, ahead=0)
    first = serving.add([1, 2], 20, ignore_eos=True)
    serving.step()
    assert len(serving.updates[first]) == 1  # the prompt's step
    serving.step()
    assert len(serving.updates[first]) == 5
    others = [serving.add([3], 6, ignore_eos=True), serving.add([4], 2, ignore_eos=True)]
    serving.step()  # one step beside a prompt, and while the third request waits for a place
    serving.step()
    assert len(serving.updates[first]) == 7
    serving.run()
    assert [len(serving.output(request).tokens) for request in (first, *others)] == [20, 6, 2]
    goes = {plan.decode_steps for plan in serving.runner.plans if plan.decode}
    assert goes == {1, 4}


def test_running_requests_are_bounded_and_served_in_order_of_arrival():
    serving = Serving(slots=2, budget=100)
    for _ in range(5):
        serving.add([1, 2, 3], 4, ignore_eos=True)
    order = []
    while serving.step():
        order += [s.handle.id for s in serving.scheduler.running if s.handle.id not in order]
        assert len(serving.scheduler.running) <= 2
    assert order == [1, 2, 3, 4, 5]


def test_answers_go_on_while_a_long_prompt_is_prefilled():
    serving = Serving(pages=100, budget=8, ahead=0)
    short = serving.add([1], 12, ignore_eos=True)
    serving.step()
    serving.add([2] * 80, 1)
    for count in range(1, 10):
        assert len(serving.updates[short]) == count
        serving.step()


@pytest.mark.parametrize("long_prompts", [1, 2, 3])
def test_a_short_prompt_is_not_held_up_by_long_ones(long_prompts):
    serving = Serving(pages=200, budget=32, ahead=0)
    for n in range(long_prompts):
        serving.add([2 + n] * 160, 1)
    serving.step()
    short = serving.add([1, 1], 1, ignore_eos=True)
    serving.step()
    assert serving.output(short).tokens == alone([1, 1], 1)


def test_a_lone_prompt_gets_the_whole_budget():
    serving = Serving(pages=200, budget=32, ahead=0)
    serving.add([2] * 160, 1)
    serving.run()
    assert len(serving.runner.plans) == 5


def test_without_chunking_a_prompt_is_prefilled_in_one_step():
    serving = Serving(pages=100, budget=8, block=4, chunked=False, ahead=0)
    request = serving.add([3] * 61, 1, ignore_eos=True)
    serving.step()
    assert serving.output(request).tokens == alone([3] * 61, 1)
    assert len(serving.runner.plans) == 1


def test_the_youngest_is_preempted_and_resumes_with_its_tokens():
    serving = Serving(pages=6, page_size=4, slots=2, budget=16)
    old = serving.add([1] * 7, 12, ignore_eos=True)
    young = serving.add([2] * 7, 12, ignore_eos=True)
    serving.run()
    assert serving.scheduler.preemptions >= 1
    assert serving.output(old).tokens == alone([1] * 7, 12, ends=())
    assert serving.output(young).tokens == alone([2] * 7, 12, ends=())
    assert serving.updates[old][-1].output.stats.total_time_ms <= serving.updates[young][-1].output.stats.total_time_ms


def test_a_prefix_hit_skips_full_pages_but_never_the_last_token():
    serving = Serving(pages=30, page_size=4, budget=100, block=100)
    first = serving.add(list(range(1, 13)), 1)
    serving.run()
    again = serving.add(list(range(1, 13)), 1)
    longer = serving.add([*range(1, 13), 7, 7], 1)
    other = serving.add([9, *range(2, 13)], 1)
    serving.run()
    cached = [serving.output(request).cached_tokens for request in (first, again, longer, other)]
    assert cached == [0, 8, 12, 0]
    assert serving.output(again).tokens == serving.output(first).tokens


def test_the_answer_is_cached_for_the_next_turn_without_the_dropped_token():
    """Pages of the answer serve the next prompt; the token computed past an end token is in none of them."""
    serving = Serving(pages=30, page_size=1, budget=100, block=100)
    prompt = next(p for p in ([1, n] for n in range(1000)) if len(alone(p, 10)) == 3)
    first = serving.add(prompt, 10)
    serving.run()
    history = prompt + serving.output(first).tokens
    after = next_token([*history, END])
    turn = serving.add([*history, END, after, 5], 1)
    serving.run()
    assert serving.output(turn).cached_tokens == len(history)


def test_cancelling_returns_pages_at_once_in_every_state():
    serving = Serving(pages=8, page_size=4, slots=1, budget=4, ahead=1)
    prefilling, waiting = serving.add([1] * 20, 5), serving.add([2] * 3, 5)
    serving.step()
    serving.cancel(waiting)
    assert serving.output(waiting).finish_reason is FinishReason.Cancelled and serving.output(waiting).tokens == []
    serving.cancel(prefilling)
    assert serving.pool.available == serving.pool.capacity
    serving.cancel(prefilling)  # has ended: stays as it is
    decoding = serving.add([3] * 3, 20, ignore_eos=True)
    for _ in range(4):
        serving.step()
    serving.cancel(decoding)
    assert serving.pool.available == serving.pool.capacity
    made = serving.output(decoding).tokens
    assert made and made == alone([3] * 3, 20, ends=())[: len(made)]
    serving.run()
    assert len(serving.updates[decoding]) == len(made) + 1


def test_cancelling_while_the_last_token_is_on_its_way():
    serving = Serving(ahead=1)
    request = serving.add([1, 2], 1, ignore_eos=True)
    serving.step()  # the only token is chosen and not read
    serving.cancel(request)
    assert serving.output(request).finish_reason is FinishReason.Cancelled
    serving.run()


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_failed_step_ends_its_requests_and_recomputes_the_others(ahead):
    serving = Serving(pages=40, slots=4, budget=4, ahead=ahead)
    decoding = [serving.add([n] * 4, 10, ignore_eos=True) for n in (1, 2)]
    for _ in range(4 + ahead):
        serving.step()
    waiting = [serving.add([n] * 9, 10, ignore_eos=True) for n in (3, 4)]
    serving.fail_step()  # two answers, and the budget for a part of one prompt
    for request in (*decoding, waiting[0]):
        output = serving.output(request)
        assert output.finish_reason == FinishReason.Error("no more")
        assert output.tokens == alone([request] * 4, 10, ends=())[: len(output.tokens)]
    again = serving.add([1] * 4, 10, ignore_eos=True)
    serving.run()
    assert serving.output(waiting[1]).tokens == alone([4] * 9, 10, ends=())
    assert serving.output(again).tokens == alone([1] * 4, 10, ends=())
    assert serving.output(again).cached_tokens == 0  # what the pages held is lost


def test_a_request_that_was_preempted_with_its_last_token_on_the_way_can_still_fail():
    serving = Serving(pages=5, page_size=4, slots=2, budget=16, ahead=1)
    requests = [serving.add([n] * 6, 9, ignore_eos=True) for n in (1, 2)]
    while not serving.scheduler.preemptions:
        assert serving.step()
    serving.unread.clear()  # the step that chooses its token raises when it is read
    serving.scheduler.fail(RuntimeError("no more"))
    serving.run()
    outputs = [serving.updates[request][-1].output for request in requests]
    assert any(output.finish_reason == FinishReason.Error("no more") for output in outputs)
    for request, output in zip(requests, outputs, strict=True):
        expected = alone([request] * 6, 9, ends=())
        assert output.tokens == expected[: len(output.tokens)]
        assert output.finish_reason is FinishReason.Length or len(output.tokens) < 9


def test_a_plan_can_be_pickled_and_replayed():
    serving = Serving(pages=9, slots=3)
    for n in range(1, 6):
        serving.add([n] * 6, 8, frequency_penalty=0.5, logit_bias={3: 1.0}, min_tokens=2)
    serving.run()
    again = Serving(pages=9, slots=3).runner
    plans = pickle.loads(pickle.dumps(serving.runner.plans))
    assert plans == serving.runner.plans and any(plan.admissions for plan in plans)
    outputs = [again.dispatch(plan) for plan in plans]
    assert all(isinstance(output, StepOutput) for output in outputs) and again.last == serving.runner.last


@pytest.mark.parametrize("caching", [False, True])
def test_pages_that_the_window_has_left_serve_others(caching):
    """With a window of two pages, an answer of ten needs three at a time, and one more while a step is under way."""
    serving = Serving(pages=12, slots=2, block=PAGE, budget=PAGE, windows=(2 * PAGE,), caching=caching)
    for seed in (1, 2):
        serving.add([seed], 10 * PAGE - 1, seed=seed, ignore_eos=True)
    most = 0
    while serving.step():
        most = max(most, *(len(s.tables[0].pages) for s in serving.scheduler.running), 0)
    assert most <= 4 and serving.scheduler.preemptions == 0
    for request in (1, 2):
        expected = alone([request], 10 * PAGE - 1, seed=request, ends=(), windows=(2 * PAGE,))
        assert serving.output(request).tokens == expected


def test_a_prefix_is_found_by_its_last_window():
    """The beginning of a long text is gone from the cache, and is not needed to go on from its end."""
    serving = Serving(pages=10, slots=1, block=PAGE, budget=PAGE, windows=(PAGE,))
    text = [1 + i % 3 for i in range(6 * PAGE)]
    serving.add(text, 1, ignore_eos=True)
    serving.run()
    oldest = serving.pool.allocate(serving.pool.available - 2)
    serving.pool.release(oldest)
    again = serving.add([*text, 2], 1, ignore_eos=True)
    serving.run()
    assert serving.output(again).stats.cached_tokens == 6 * PAGE
    assert serving.output(again).tokens == alone([*text, 2], 1, ends=(), windows=(PAGE,))


def test_layers_that_see_all_keep_their_pages_and_those_with_a_window_do_not():
    """Behind a window of two pages an answer of any length needs four pages, three and one for the step under way."""
    serving = Serving(pages=[40, 8], slots=2, block=PAGE, budget=PAGE, windows=(None, 2 * PAGE))
    for seed in (1, 2):
        serving.add([seed], 20 * PAGE - 1, seed=seed, ignore_eos=True)
    while serving.step():
        check_pages(serving, PAGE)
        for sequence in serving.scheduler.running:
            whole, windowed = sequence.tables
            assert len(whole.pages) == -(-sequence.computed // PAGE) and len(windowed.pages) <= 4
    assert serving.scheduler.preemptions == 0
    for request in (1, 2):
        expected = alone([request], 20 * PAGE - 1, seed=request, ends=(), windows=(None, 2 * PAGE))
        assert serving.output(request).tokens == expected


def test_a_long_prompt_needs_no_more_than_a_window_and_a_step():
    serving = Serving(pages=[40, 4], slots=2, block=PAGE, budget=4 * PAGE, windows=(None, 2 * PAGE))
    prompts = [[1 + n] * 30 * PAGE for n in range(2)]
    requests = [serving.add(prompt, 3, ignore_eos=True) for prompt in prompts]
    serving.run()
    assert serving.scheduler.preemptions == 0
    for request, prompt in zip(requests, prompts, strict=True):
        assert serving.output(request).tokens == alone(prompt, 3, ends=(), windows=(None, 2 * PAGE))


def test_sequences_that_decode_leave_the_pages_of_a_prompt_to_the_next():
    """Behind a window of two pages a prompt in steps of eight needs up to 17 pages, an answer four."""
    sizes = {"slots": 4, "block": 8 * PAGE, "budget": 8 * PAGE}
    serving = Serving(pages=[200, 34], **sizes, windows=(None, 2 * PAGE), caching=False)
    for n in range(4):
        serving.add([1 + n] * 16 * PAGE, 60, ignore_eos=True)
    most = 0
    while serving.step():
        most = max(most, len(serving.scheduler.running))
    assert most == 4 and serving.scheduler.preemptions == 0


def test_a_prefix_hit_needs_the_whole_prefix_in_one_group_and_its_last_window_in_the_other():
    windows, text = (None, 2 * PAGE), [1 + i % 3 for i in range(8 * PAGE)]
    serving = Serving(pages=[20, 12], slots=1, block=PAGE, budget=PAGE, windows=windows)

    def cached_of(prompt):
        request = serving.add(prompt, 1, ignore_eos=True)
        serving.run()
        assert serving.output(request).tokens == alone(prompt, 1, ends=(), windows=windows)
        return serving.output(request).cached_tokens

    def use_up(group, left):
        """Take the least recently used pages for something else."""
        pool = serving.pools[group]
        pool.release(pool.allocate(pool.available - left))

    assert [cached_of([*text, 2]), cached_of([*text, 3])] == [0, 8 * PAGE]
    use_up(1, 2)  # the last window is left
    assert cached_of([*text, 4]) == 8 * PAGE
    assert cached_of([*text[: 4 * PAGE], 4]) == 0  # what the window held there is gone, and is there again now
    assert cached_of([*text[: 4 * PAGE], 5]) == 4 * PAGE
    use_up(0, 3)  # the beginning is used last
    assert cached_of([*text, 5]) == 3 * PAGE
