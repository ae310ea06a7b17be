"""Receding horizon and temporal ensembling: what they do of chunks, and that they concern acting alone."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_qam import QAM
from sb3_qam.runtime import ChunkExecution
from tests.common.test_chunks import SMALL, CoarseWalk, Walk, make_policy, observe

SHAPE = (2,)


def execute(execution: ChunkExecution, chunks: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """
    :param chunks: What would be decided at each step, shape (n_steps, n_envs, chunk_size, *SHAPE)
    :param starts: shape (n_steps, n_envs)
    :return: What is executed, shape (n_steps, n_envs, *SHAPE)
    """
    state, executed = None, []
    for now, started in zip(chunks, starts, strict=True):
        action, state = execution(lambda rows, now=now: now[rows], len(started), SHAPE, state, started)
        executed.append(action)
    return np.array(executed)


def act(chunks: np.ndarray, starts: np.ndarray, every: int, decay: float) -> np.ndarray:
    """Temporal ensembling as the paper has it: all chunks are kept, and those that reach a step are averaged."""
    n_steps, n_envs, size = chunks.shape[:3]
    executed = np.zeros((n_steps, n_envs, *SHAPE))
    for env in range(n_envs):
        first = 0
        for step in range(n_steps):
            first = step if starts[step, env] else first
            made = [t for t in range(first, step + 1) if (t - first) % every == 0 and step - t < size]
            weights = np.exp(-decay * np.arange(len(made)))
            said = np.array([chunks[t, env, step - t] for t in made])
            executed[step, env] = (weights[:, None] * said).sum(axis=0) / weights.sum()
    return executed


@settings(max_examples=60)
@given(data=st.data())
def test_ensembling_is_the_weighted_mean_of_all_chunks_that_reach_a_step(data: st.DataObject):
    size, n_steps, n_envs = data.draw(st.integers(2, 6)), data.draw(st.integers(1, 15)), data.draw(st.integers(1, 3))
    every, decay = data.draw(st.integers(1, size)), data.draw(st.floats(-2, 2))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    chunks = rng.normal(size=(n_steps, n_envs, size, *SHAPE)).astype(np.float32)
    starts = rng.random((n_steps, n_envs)) < 0.2
    starts[0] = True
    executed = execute(ChunkExecution(size, every, decay), chunks, starts)
    np.testing.assert_allclose(executed, act(chunks, starts, every, decay), atol=2e-6)


@pytest.mark.parametrize("every", [1, 2, 3, 4])
def test_a_new_chunk_takes_the_place_of_the_rest_after_as_many_actions(every: int):
    chunks = np.random.default_rng(0).normal(size=(9, 1, 4, *SHAPE)).astype(np.float32)
    executed = execute(ChunkExecution(4, every), chunks, np.zeros((9, 1), bool))
    expected = [chunks[step - step % every, 0, step % every] for step in range(9)]
    np.testing.assert_array_equal(executed[:, 0], expected)


def test_by_default_chunks_are_executed_to_their_end_and_ensembled_at_every_step():
    chunks = np.random.default_rng(0).normal(size=(9, 1, 4, *SHAPE)).astype(np.float32)
    starts = np.zeros((9, 1), bool)
    pairs = [(ChunkExecution(4), ChunkExecution(4, 4)), (ChunkExecution(4, None, 0.1), ChunkExecution(4, 1, 0.1))]
    for one, other in pairs:
        np.testing.assert_array_equal(execute(one, chunks, starts), execute(other, chunks, starts))


@pytest.mark.parametrize(("decay", "counts"), [(1e6, "oldest"), (-1e6, "newest")])
def test_at_the_extremes_one_chunk_counts(decay: float, counts: str):
    chunks = np.random.default_rng(0).normal(size=(4, 1, 4, *SHAPE)).astype(np.float32)
    executed = execute(ChunkExecution(4, 1, decay), chunks, np.zeros((4, 1), bool))
    expected = [chunks[0, 0, step] if counts == "oldest" else chunks[step, 0, 0] for step in range(4)]
    np.testing.assert_array_equal(executed[:, 0], expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [("replan_every", value) for value in (0, 5, 1.5, True, "1")]
    + [("ensemble_decay", value) for value in (np.nan, np.inf, "0.01")],
)
def test_settings_out_of_range_are_refused_before_anything_is_done(name: str, value: Any):
    policy = make_policy()
    setattr(policy, name, value)
    with pytest.raises(ValueError, match=rf"{name} must be .*got {value!r}"):
        policy.predict(observe(1))


def test_without_chunks_there_is_nothing_to_replan():
    model = QAM("FlowPolicy", "Pendulum-v1", **SMALL)
    model.policy.ensemble_decay = 0.01
    model.policy.replan_every = 1
    assert model.predict(np.zeros(3))[1] is None
    model.policy.replan_every = 2
    with pytest.raises(ValueError, match=r"from 1 to chunk_size=1, .* got 2"):
        model.predict(np.zeros(3))


def test_replanning_at_every_step_is_acting_without_a_state():
    policy = make_policy()
    policy.replan_every = 1
    state = None
    for step in range(6):
        action, state = policy.predict(observe(3, step), state, deterministic=True)
        np.testing.assert_array_equal(action, policy.predict(observe(3, step), deterministic=True)[0])


def test_each_environment_is_ensembled_for_itself():
    model = QAM("FlowPolicy", Walk(), chunk_size=4, seed=0, **SMALL)
    model.policy.ensemble_decay = 0.01
    together, state = [], None
    starts = np.array([[step == 0, step in (0, 3)] for step in range(8)])
    for step, started in enumerate(starts):
        action, state = model.predict(observe(2, step), state, started, deterministic=True)
        together.append(action)
    for env in range(2):
        state = None
        for step, started in enumerate(starts):
            action, state = model.predict(observe(2, step)[env], state, started[[env]], deterministic=True)
            np.testing.assert_allclose(action, together[step][env], atol=1e-5)


def test_evaluation_acts_as_it_is_set():
    model = QAM("FlowPolicy", CoarseWalk(), chunk_size=4, seed=0, **SMALL)
    returns = {}
    for every, decay in [(None, None), (4, None), (1, None), (None, 0.01)]:
        model.policy.replan_every, model.policy.ensemble_decay = every, decay
        returns[every, decay] = evaluate_policy(model, CoarseWalk(), 1, warn=False)[0]
    assert returns[None, None] == returns[4, None]
    assert len(set(returns.values())) == 3


def test_training_is_the_same_however_the_policy_acts():
    def train(**settings: Any) -> QAM:
        model = QAM("FlowPolicy", Walk(), chunk_size=4, learning_starts=5, seed=0, **SMALL)
        for name, value in settings.items():
            setattr(model.policy, name, value)
        return model.learn(25)

    plain, other = train(), train(replan_every=1, ensemble_decay=0.1)
    np.testing.assert_array_equal(plain.replay_buffer.actions, other.replay_buffer.actions)
    for one, two in zip(plain.policy.parameters(), other.policy.parameters(), strict=True):
        assert one.equal(two)


def test_a_state_of_open_loop_execution_goes_on_with_other_settings():
    policy = make_policy()
    action, state = policy.predict(observe(2), deterministic=True)
    policy.ensemble_decay = 0.0
    action, state = policy.predict(observe(2, 1), state, deterministic=True)
    fresh = policy.predict(observe(2, 1), deterministic=True)[1]
    # the mean of what both chunks say
    first = policy.predict(observe(2), deterministic=True)[1]
    np.testing.assert_allclose(action, (first.actions[:, 1] + fresh.actions[:, 0]) / 2, atol=1e-6)
