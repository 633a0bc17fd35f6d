import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_py.decoding.policy import Round
from runtime_py.decoding.sampling import GREEDY, SamplingParams, choose
from runtime_py.decoding.session import Session, Stops
from runtime_py.draft_length.costs import Known
from runtime_py.draft_length.policy import AutoDraftLength
from runtime_py.errors import RunError
from tests.runtime_py.scripted_backend import Adversary, ForgetfulBackend, ScriptedBackend

samplings = st.sampled_from(
    [
        GREEDY,
        SamplingParams(temperature=0.7, top_k=0, top_p=1.0, seed=1),
        SamplingParams(temperature=1.5, top_k=10, top_p=1.0, seed=2),
        SamplingParams(temperature=1.0, top_k=0, top_p=0.8, seed=3),
    ]
)
prompts = st.lists(st.integers(0, 39), min_size=1, max_size=20)


def tokens_of(session, prompt_ids, sampling=GREEDY, stops=None, draft_length=0):
    steps = session.generate(prompt_ids, sampling, stops or Stops(max_new_tokens=40), draft_length)
    return [token_id for step in steps for token_id in step.token_ids]


def expected_tokens(backend, prompt_ids, sampling, num_tokens):
    tokens = list(prompt_ids)
    for _ in range(num_tokens):
        tokens.append(choose(backend.target_logits(tokens), sampling, len(tokens)))
    return tokens[len(prompt_ids) :]


@settings(deadline=None)
@given(
    prompt_ids=prompts, sampling=samplings, draft_length=st.integers(0, 7), skill=st.floats(0, 1)
)
def test_speculative_tokens_equal_plain_decode(prompt_ids, sampling, draft_length, skill):
    backend = ScriptedBackend(skill=skill)
    tokens = tokens_of(Session(backend, 128), prompt_ids, sampling, draft_length=draft_length)
    assert tokens == expected_tokens(backend, prompt_ids, sampling, 40)


adversaries = st.builds(
    Adversary, st.lists(st.builds(Round, st.integers(0, 7), st.booleans()), min_size=1)
)
policies = adversaries | st.builds(
    lambda draft, ms, prior: AutoDraftLength(Known(round_s=ms, draft_s=draft, acceptance=prior)),
    st.floats(1e-5, 1e-2),
    st.lists(st.floats(1e-5, 1e-2), min_size=8, max_size=8),
    st.floats(0, 1),
)


@settings(deadline=None)
@given(prompt_ids=prompts, sampling=samplings, policy=policies, skill=st.floats(0, 1))
def test_whatever_the_policy_decides_the_tokens_equal_plain_decode(
    prompt_ids, sampling, policy, skill
):
    backend = ScriptedBackend(skill=skill)
    tokens = tokens_of(Session(backend, 128), prompt_ids, sampling, draft_length=policy)
    assert tokens == expected_tokens(backend, prompt_ids, sampling, 40)


@settings(deadline=None)
@given(
    sampling=samplings, policy=adversaries, skill=st.floats(0, 1), max_new_tokens=st.integers(1, 60)
)
def test_the_policy_sees_what_happened(sampling, policy, skill, max_new_tokens):
    backend = ScriptedBackend(skill=skill)
    session, stops = Session(backend, 50), Stops(max_new_tokens=max_new_tokens)
    steps = list(session.generate([1, 2, 3], sampling, stops, policy))
    assert len(policy.seen) == len(steps) == backend.num_calls["verify"]
    assert sum(outcome.num_drafted for outcome in policy.seen) == backend.num_calls["draft"]
    for outcome, step in zip(policy.seen, steps, strict=True):
        assert outcome.num_verified == 1 + step.num_drafted
        assert 0 <= outcome.num_accepted <= outcome.num_drafted
        assert step.num_accepted in (0, outcome.num_accepted)
        assert outcome.draft_s >= 0 < outcome.verify_s


@pytest.mark.parametrize("skill", [0.0, 1.0])
def test_a_draft_that_is_only_compared_is_judged_like_a_verified_one(skill):
    policy = Adversary([Round(1, verified=False)])
    steps = list(
        Session(ScriptedBackend(skill=skill), 128).generate(
            [1, 2], GREEDY, Stops(max_new_tokens=20), policy
        )
    )
    assert [len(step.token_ids) for step in steps] == [1] * 20
    # The first round has no hidden state to draft from, the last nothing to draft.
    assert [outcome.num_drafted for outcome in policy.seen] == [0, *[1] * 18, 0]
    assert {outcome.num_accepted for outcome in policy.seen[1:-1]} == {int(skill)}


@settings(deadline=None)
@given(
    prompt_ids=prompts,
    sampling=samplings,
    draft_length=st.integers(0, 7) | policies,
    max_new_tokens=st.integers(1, 40),
    context_length=st.integers(21, 60),
    stop_ids=st.frozensets(st.integers(0, 39), max_size=4),
)
def test_stops_are_exact(
    prompt_ids, sampling, draft_length, max_new_tokens, context_length, stop_ids
):
    backend = ScriptedBackend(skill=0.8, cache_length=context_length)
    stops = Stops(max_new_tokens=max_new_tokens, token_ids=stop_ids)
    tokens = tokens_of(Session(backend, 1000), prompt_ids, sampling, stops, draft_length)
    num_expected = min(max_new_tokens, context_length - len(prompt_ids))
    expected = expected_tokens(backend, prompt_ids, sampling, num_expected)
    for index, token_id in enumerate(expected):
        if token_id in stop_ids:
            expected = expected[: index + 1]
            break
    assert tokens == expected


@settings(deadline=None)
@given(first=prompts, second=prompts, draft_length=st.integers(0, 7) | policies, sampling=samplings)
def test_a_second_prompt_sees_nothing_of_the_first_but_what_they_share(
    first, second, draft_length, sampling
):
    backend = ScriptedBackend(skill=0.8)
    session = Session(backend, 128)
    answer = tokens_of(session, first, sampling, Stops(max_new_tokens=9), draft_length)
    follow_up = [*first, *answer, *second]
    assert tokens_of(session, follow_up, sampling, draft_length=draft_length) == expected_tokens(
        backend, follow_up, sampling, 40
    )
    assert tokens_of(session, second, sampling, draft_length=draft_length) == expected_tokens(
        backend, second, sampling, 40
    )


def test_a_follow_up_prefills_only_what_is_new():
    backend = ScriptedBackend()
    session = Session(backend, 128)
    answer = tokens_of(session, list(range(10)), stops=Stops(max_new_tokens=5))
    before = backend.num_prefilled
    tokens_of(session, [*range(10), *answer, 1, 2, 3])
    # The last emitted token was never fed; the last prompt token is fed by decode.
    assert backend.num_prefilled - before == 3


@settings(deadline=None, max_examples=40)
@given(
    history=st.lists(
        st.tuples(st.integers(0, 60), st.lists(st.integers(0, 39), max_size=9)), max_size=6
    ),
    sampling=samplings,
    draft_length=st.integers(0, 7),
)
def test_wherever_a_prompt_leaves_the_last_one_rows_that_were_given_back_are_not_missed(
    history, sampling, draft_length
):
    """Each prompt keeps some of the text so far and goes on in another way."""
    backend = ForgetfulBackend()
    session = Session(backend, 128)
    text = [1, 2, 3]
    for num_kept, more in [(3, [4]), *history]:
        prompt_ids = [*text[:num_kept], *more] or [0]
        tokens = tokens_of(session, prompt_ids, sampling, Stops(max_new_tokens=30), draft_length)
        assert tokens == expected_tokens(backend, prompt_ids, sampling, 30)
        text = [*prompt_ids, *tokens]


def test_only_a_prompt_that_leaves_the_last_one_too_early_is_prefilled_from_the_start():
    backend = ForgetfulBackend()
    session = Session(backend, 128)
    text = [*range(10), *tokens_of(session, list(range(10)), stops=Stops(max_new_tokens=30))]
    first, backend.num_prefilled = backend.resumable_from, 0
    assert 30 <= first < len(text)
    tokens_of(session, [*text[:first], 1, 2], stops=Stops(max_new_tokens=1))
    assert backend.num_prefilled == 1
    tokens_of(session, [*text[: first - 1], 3, 4], stops=Stops(max_new_tokens=1))
    assert backend.num_prefilled == 1 + first


def test_a_perfect_drafter_needs_one_target_call_for_every_k_plus_one_tokens():
    backend = ScriptedBackend(skill=1.0)
    steps = list(Session(backend, 128).generate([1, 2], GREEDY, Stops(max_new_tokens=41), 3))
    assert [len(step.token_ids) for step in steps] == [1] + [4] * 10
    assert all(step.num_accepted == step.num_drafted for step in steps)
    assert backend.num_calls == {"prefill": 1, "verify": 11, "draft": 30}


def test_no_draft_is_made_for_tokens_that_may_not_be_emitted():
    backend = ScriptedBackend(skill=1.0)
    steps = list(Session(backend, 128).generate([1], GREEDY, Stops(max_new_tokens=4), 7))
    assert [step.num_drafted for step in steps] == [0, 2]


def test_abandoned_steps_leave_a_session_that_still_answers_right():
    backend = ScriptedBackend(skill=0.6)
    session = Session(backend, 128)
    steps = session.generate([5, 6, 7], GREEDY, Stops(max_new_tokens=40), 4)
    next(steps)
    next(steps)
    steps.close()
    assert tokens_of(session, [5, 6, 7, 8], draft_length=4) == expected_tokens(
        backend, [5, 6, 7, 8], GREEDY, 40
    )


@pytest.mark.parametrize("own", [True, False], ids=["same session", "another"])
def test_a_generation_that_another_took_over_says_so(own):
    backend = ScriptedBackend(skill=0.6)
    session = Session(backend, 128)
    newer = session if own else Session(backend, 128)
    old = session.generate([5, 6, 7], GREEDY, Stops(max_new_tokens=40), 4)
    next(old)
    stops = Stops(max_new_tokens=9)
    assert tokens_of(newer, [5, 8], stops=stops) == expected_tokens(backend, [5, 8], GREEDY, 9)
    with pytest.raises(RunError, match="this answer cannot go on: another one has begun"):
        next(old)


@settings(deadline=None)
@given(
    turns=st.lists(st.tuples(st.integers(0, 2), prompts), min_size=2, max_size=6),
    draft_length=st.integers(0, 7),
)
def test_sessions_take_turns_on_one_backend(turns, draft_length):
    """Each goes on with its own text, whoever wrote rows since."""
    backend = ForgetfulBackend()
    sessions, texts = [Session(backend, 500) for _ in range(3)], [[], [], []]
    for index, more in turns:
        prompt_ids = texts[index] + more
        answer = tokens_of(
            sessions[index], prompt_ids, GREEDY, Stops(max_new_tokens=9), draft_length
        )
        assert answer == expected_tokens(backend, prompt_ids, GREEDY, 9)
        texts[index] = prompt_ids + answer


def test_a_generation_that_was_not_begun_takes_nothing_over():
    backend = ScriptedBackend()
    old = Session(backend, 128).generate([5, 6], GREEDY, Stops(max_new_tokens=5), 0)
    next(old)
    Session(backend, 128).generate([1], GREEDY, Stops(max_new_tokens=5), 0)
    assert len(list(old)) == 4


def test_an_interrupted_prefill_leaves_no_rows_that_claim_to_be_committed():
    class Interrupted(ScriptedBackend):
        interrupt = False

        def prefill(self, token_ids, position):
            if self.interrupt:
                self._write([39] * len(token_ids), position, len(token_ids))
                raise KeyboardInterrupt
            super().prefill(token_ids, position)

    backend = Interrupted()
    session = Session(backend, 128)
    tokens_of(session, [1, 2, 3, 4])
    backend.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        tokens_of(session, [1, 2, 9, 9, 9])
    backend.interrupt = False
    assert tokens_of(session, [1, 2, 3, 4]) == expected_tokens(backend, [1, 2, 3, 4], GREEDY, 40)


@pytest.mark.parametrize(
    ("prompt_ids", "draft_length", "said"),
    [
        ([], 0, "the prompt is empty"),
        ([1] * 128, 0, "the prompt has 128 tokens, the context holds 128"),
        ([40], 0, "outside 0 .. 39"),
        ([-1], 0, "outside 0 .. 39"),
        ([1], 8, "draft length is 8; this bundle allows 0 .. 7"),
        ([1], -1, "draft length is -1"),
    ],
)
def test_refuses_what_cannot_be_run(prompt_ids, draft_length, said):
    with pytest.raises(RunError, match=said):
        Session(ScriptedBackend(), 500).generate(
            prompt_ids, GREEDY, Stops(max_new_tokens=1), draft_length
        )


def test_refuses_to_generate_nothing():
    with pytest.raises(RunError, match="max-new-tokens is 0"):
        Stops(max_new_tokens=0)
