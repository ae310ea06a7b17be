"""Chunks are executed open loop, by each environment for itself."""

import threading
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_qam import QAM, FlowPolicy
from sb3_qam.common.buffers import SequenceReplayBuffer
from sb3_qam.common.phases import SpacesOnlyEnv

OBSERVATIONS = spaces.Box(-1.0, 1.0, (3,))
ACTIONS = spaces.Box(np.array([0.0, -5.0], np.float32), np.array([10.0, 5.0], np.float32))
H = 4
SMALL = {"batch_size": 8, "flow_steps": 3, "buffer_size": 200, "policy_kwargs": {"net_arch": [16, 16]}}


class Walk(gym.Env):
    """
    The actions move the observation, which is the reward; the length of an episode depends on its number.

    :param first: Number of the first episode
    """

    observation_space, action_space = OBSERVATIONS, ACTIONS

    def __init__(self, first: int = 0) -> None:
        self.number = first - 1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.number += 1
        self.step_number = 0
        self.state = np.array([0.1 * self.number, -0.2, 0.3])
        return self.observation(), {}

    def observation(self) -> np.ndarray:
        return np.tanh(self.state).astype(np.float32)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.step_number += 1
        self.state = self.state + 0.1 * np.array([action[0] / 5 - 1, action[1] / 5, action[0] * action[1] / 50])
        return self.observation(), float(self.state.sum()), self.step_number == 6 + 3 * self.number, False, {}


class CoarseWalk(Walk):
    """
    Rounds observations: a batch of another size computes actions that differ in the last bits, and where one bit of an
    observation differs, deterministic actions have other noise.
    """

    def observation(self) -> np.ndarray:
        return super().observation().round(2)


def make_policy(**kwargs: Any) -> FlowPolicy:
    th.manual_seed(0)
    return FlowPolicy(OBSERVATIONS, ACTIONS, lambda _: 1e-3, net_arch=[16], chunk_size=H, flow_steps=3, **kwargs)


def observe(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (n, 3)).astype(np.float32)


def test_a_chunk_is_made_of_one_observation_and_executed_whatever_comes():
    policy = make_policy()
    first = observe(2)
    with th.no_grad():
        chunk = policy._predict(th.as_tensor(first), deterministic=True).numpy()
    expected = policy.unscale_action(chunk.reshape(2 * H, 2)).reshape(2, H, 2)
    state = None
    for step in range(H):
        action, state = policy.predict(first if step == 0 else observe(2, seed=step), state, deterministic=True)
        np.testing.assert_allclose(action, expected[:, step], rtol=1e-6)
        assert action.dtype == np.float32
    action, _ = policy.predict(observe(2, seed=99), state, deterministic=True)
    expected_next, _ = policy.predict(observe(2, seed=99), deterministic=True)
    np.testing.assert_array_equal(action, expected_next)


def test_an_environment_that_was_reset_begins_a_new_chunk_and_the_others_continue():
    policy = make_policy()
    _, state = policy.predict(observe(3), deterministic=True)
    kept = [np.copy(part) for part in state]
    action, after = policy.predict(observe(3, 1), state, np.array([False, True, False]), deterministic=True)
    fresh, _ = policy.predict(observe(3, 1), deterministic=True)
    np.testing.assert_allclose(action[1], fresh[1], rtol=1e-5)
    np.testing.assert_array_equal(action[[0, 2]], state.actions[[0, 2], 1])
    assert after.position.tolist() == [2, 1, 2]
    # what the caller holds is not written to
    for before, now in zip(kept, state, strict=True):
        np.testing.assert_array_equal(before, now)


def test_the_state_of_a_single_observation_is_that_of_one_environment():
    policy = make_policy()
    observation = observe(1)[0]
    single, state = policy.predict(observation, deterministic=True)
    batched, batched_state = policy.predict(observation[None], deterministic=True)
    assert single.shape == (2,)
    np.testing.assert_array_equal(single, batched[0])
    np.testing.assert_array_equal(state.actions, batched_state.actions)
    second, _ = policy.predict(observation, state, np.zeros(1, bool), deterministic=True)
    np.testing.assert_array_equal(second, state.actions[0, 1])


@pytest.mark.parametrize(
    "state",
    [
        (np.zeros((2, H, 2)), np.zeros(2)),
        np.zeros(3),
        (np.zeros((3, 2)),),
        "rest",
        (np.zeros((3, H, 2)), np.full(3, H + 1)),
        (np.zeros((3, H, 2)), np.full(3, -1)),
        (np.zeros((3, H, 2)), np.full(3, 0.5)),
    ],
)
def test_a_state_of_something_else_is_refused(state: Any):
    with pytest.raises(ValueError, match=r"state must be what predict\(\) returned for the same 3 environment"):
        make_policy().predict(observe(3), state)


def test_sb3_explains_what_reset_returns_also_with_chunks():
    with pytest.raises(ValueError, match="mixing Gym API with SB3 VecEnv API"):
        make_policy().predict((observe(1)[0], {}))


def test_dict_observations_and_actions_of_any_shape_come_in_chunks():
    space = spaces.Box(-1.0, 1.0, (2, 3))
    policy = FlowPolicy(spaces.Dict(a=OBSERVATIONS, b=spaces.Discrete(3)), space, lambda _: 1e-3, chunk_size=H)
    observation = {"a": observe(5), "b": np.arange(5) % 3}
    action, state = policy.predict(observation)
    assert action.shape == (5, 2, 3)
    assert state.actions.shape == (5, H, 2, 3)
    action, _ = policy.predict({"a": observe(1)[0], "b": np.array(2)})
    assert action.shape == (2, 3)


@pytest.mark.parametrize("vec_env_class", [DummyVecEnv, SubprocVecEnv])
def test_several_environments_have_the_returns_that_each_has_alone(vec_env_class: type):
    model = QAM("FlowPolicy", Walk(), chunk_size=H, seed=0, **SMALL)
    walks = [lambda first=first: CoarseWalk(first) for first in range(5)]
    alone = [evaluate_policy(model, walk(), 1, return_episode_rewards=True, warn=False) for walk in walks]
    env = vec_env_class(walks)
    returns, lengths = evaluate_policy(model, env, 5, return_episode_rewards=True, warn=False)
    env.close()
    # episodes end in the order of their lengths
    assert lengths == [6 + 3 * number for number in range(5)]
    np.testing.assert_allclose(returns, [rewards[0] for rewards, _ in alone], rtol=1e-4)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_training_executes_whole_chunks_and_stores_single_transitions(n_envs: int):
    class CountingPolicy(FlowPolicy):
        def _predict(self, observation: th.Tensor, deterministic: bool = False) -> th.Tensor:
            chunk = super()._predict(observation, deterministic)
            made.append((observation.clone(), chunk))
            return chunk

    made: list[tuple[th.Tensor, th.Tensor]] = []
    env = DummyVecEnv([lambda first=first: Walk(first) for first in range(n_envs)])
    model = QAM(CountingPolicy, env, chunk_size=H, learning_starts=0, gradient_steps=0, seed=0, **SMALL)
    model.learn(20 * n_envs)
    buffer = model.replay_buffer
    assert buffer.pos == 20
    assert buffer.actions.shape == (200 // n_envs, n_envs, 2)
    for env_number in range(n_envs):
        starts = [0, *(np.flatnonzero(buffer.dones[:20, env_number]) + 1)]
        for start, end in zip(starts, [*starts[1:], 20], strict=True):
            for chunk_start in range(start, end, H):
                executed = buffer.actions[chunk_start : min(chunk_start + H, end), env_number]
                observation = buffer.observations[chunk_start, env_number]
                # one of the chunks that were made, and made from what was seen at its beginning
                assert any(
                    np.allclose(chunk[row].reshape(H, 2)[: len(executed)], executed, atol=1e-5)
                    for seen, chunk in made
                    for row in range(len(seen))
                    if np.array_equal(seen[row], observation)
                )
    n_chunks = sum(len(seen) for seen, _ in made)
    assert n_chunks < 20 * n_envs / 2


def test_predicting_in_a_callback_leaves_the_chunk_of_the_rollout_alone():
    def learn(predicts: bool) -> np.ndarray:
        def callback(locals_: dict[str, Any], _: dict[str, Any]) -> bool:
            if predicts:
                locals_["self"].predict(observe(1), deterministic=True)
            return True

        model = QAM("FlowPolicy", Walk(), chunk_size=H, learning_starts=0, gradient_steps=0, seed=0, **SMALL)
        model.learn(10, callback=callback)
        return model.replay_buffer.actions[:10].copy()

    np.testing.assert_array_equal(learn(predicts=False), learn(predicts=True))


@pytest.mark.parametrize("stop_at", [3, 6, 8])
def test_the_step_at_which_a_callback_stops_training_is_stored(stop_at: int):
    # the first episode has 6 steps; the one that ends an episode may have the only reward
    kwargs = {"chunk_size": H, "learning_starts": 0, "gradient_steps": 0, "seed": 0, **SMALL}
    whole = QAM("FlowPolicy", Walk(), **kwargs).learn(14)
    model = QAM("FlowPolicy", Walk(), **kwargs)
    model.learn(50, callback=lambda locals_, _: locals_["self"].num_timesteps < stop_at)
    assert model.replay_buffer.pos == model.num_timesteps == stop_at
    assert len(model.ep_info_buffer) == model._episode_num == (stop_at >= 6)
    model.learn(14 - stop_at, reset_num_timesteps=False)
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "ends"):
        np.testing.assert_array_equal(getattr(model.replay_buffer, name), getattr(whole.replay_buffer, name))


@pytest.mark.parametrize("stop_at", [3, 6, 8])
def test_a_step_that_is_interrupted_leaves_no_gap(stop_at: int):
    def interrupt(locals_: dict[str, Any], _: dict[str, Any]) -> bool:
        if locals_["self"].num_timesteps == stop_at:
            raise KeyboardInterrupt
        return True

    model = QAM("FlowPolicy", Walk(), chunk_size=H, learning_starts=0, gradient_steps=0, seed=0, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        model.learn(50, callback=interrupt)
    model.learn(6, reset_num_timesteps=False)
    buffer = model.replay_buffer
    assert buffer.pos == stop_at - 1 + 6
    # the chunk that was cut short is not continued
    assert model._rollout_state.position.tolist() == [2]
    goes_on = [
        buffer.ends[row] or np.array_equal(buffer.next_observations[row], buffer.observations[row + 1])
        for row in range(buffer.pos - 1)
    ]
    assert all(goes_on)
    batch = buffer._get_samples(np.arange(buffer.pos))
    across = [row for row in range(buffer.pos) if row <= stop_at - 2 < row + H - 1]
    assert not batch.valid[across].any()


def test_chunks_that_are_longer_than_every_episode_are_reported():
    class Short(Walk):
        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
            observation, reward, _, _, info = super().step(action)
            return observation, reward, self.step_number == 3, False, info

    model = QAM("FlowPolicy", Short(), chunk_size=H, learning_starts=8, seed=0, **SMALL)
    with pytest.warns(UserWarning, match=r"episodes in the replay buffer has the 4 steps of a sequence \(at most 3\)"):
        model.learn(20)


def test_custom_replay_buffers_give_chunks_if_they_give_sequences():
    class Own(SequenceReplayBuffer):
        pass

    model = QAM("FlowPolicy", Walk(), chunk_size=H, replay_buffer_class=Own, learning_starts=5, **SMALL)
    model.learn(10)
    assert (model.replay_buffer.n_steps, model.replay_buffer.chunk_size) == (H, H)
    dict_env = SpacesOnlyEnv(spaces.Dict(a=OBSERVATIONS), ACTIONS)
    with pytest.raises(ValueError, match=r"does not hold observations of Dict.*DictSequenceReplayBuffer"):
        QAM("MultiInputPolicy", dict_env, chunk_size=H, replay_buffer_class=SequenceReplayBuffer)


def test_what_predict_takes_without_chunks_it_takes_with_them():
    policy = make_policy()
    from_list, _ = policy.predict(observe(2).tolist(), deterministic=True)
    np.testing.assert_array_equal(from_list, policy.predict(observe(2), deterministic=True)[0])
    with pytest.raises(ValueError, match=r"episode_start must have one entry for each of 2 environment"):
        policy.predict(observe(2), episode_start=np.ones(3, bool))


def test_a_reset_between_two_calls_of_learn_ends_the_chunk():
    model = QAM("FlowPolicy", Walk(), chunk_size=H, learning_starts=0, gradient_steps=0, seed=0, **SMALL)
    model.learn(2)
    assert model._rollout_state.position.tolist() == [2]
    model.learn(1)
    assert model._rollout_state.position.tolist() == [1]
    model.set_env(Walk())
    model.learn(1, reset_num_timesteps=False)
    assert model._rollout_state.position.tolist() == [1]


def test_evaluation_during_training_with_chunks(tmp_path):
    callback = EvalCallback(DummyVecEnv([Walk, Walk]), n_eval_episodes=4, eval_freq=10, verbose=0, log_path=tmp_path)
    model = QAM("FlowPolicy", Walk(), chunk_size=H, learning_starts=5, seed=0, **SMALL)
    model.learn(25, callback=callback)
    assert callback.n_calls == 25
    assert len(np.load(tmp_path / "evaluations.npz")["timesteps"]) == 2


def test_chunks_exclude_what_gives_single_transitions():
    from stable_baselines3.common.buffers import NStepReplayBuffer
    from stable_baselines3.common.envs import BitFlippingEnv
    from stable_baselines3.her import HerReplayBuffer

    with pytest.raises(ValueError, match="chunk_size=4 and n_steps=2 exclude each other"):
        QAM("FlowPolicy", Walk(), chunk_size=H, n_steps=2)
    with pytest.raises(ValueError, match="NStepReplayBuffer gives single transitions: use chunk_size=1"):
        QAM("FlowPolicy", Walk(), chunk_size=H, replay_buffer_class=NStepReplayBuffer)
    with pytest.raises(ValueError, match="HerReplayBuffer gives single transitions: use chunk_size=1"):
        QAM("MultiInputPolicy", BitFlippingEnv(continuous=True), chunk_size=H, replay_buffer_class=HerReplayBuffer)


def test_predicting_in_another_thread_leaves_the_chunk_of_the_rollout_alone():
    def learn(predicts: bool) -> tuple[np.ndarray, list[np.ndarray]]:
        model = QAM("FlowPolicy", Walk(), chunk_size=H, learning_starts=0, gradient_steps=0, seed=0, **SMALL)
        # In the middle of the rollout's own call, where another thread may be given the time
        original, others = model.policy.predict, []

        def predict_elsewhere() -> None:
            others.append(model.predict(observe(1), deterministic=True)[0])

        def predict(*args: Any, **kwargs: Any) -> Any:
            if predicts and threading.current_thread() is threading.main_thread():
                thread = threading.Thread(
                    target=lambda: others.append(model.predict(observe(1), deterministic=True)[0])
                )
                thread.start()
                thread.join()
            return original(*args, **kwargs)

        model.policy.predict = predict  # type: ignore[method-assign]
        model.learn(10)
        assert len(others) == 10 * predicts
        return model.replay_buffer.actions[:10].copy(), others

    (undisturbed, _), (actions, others) = learn(predicts=False), learn(predicts=True)
    np.testing.assert_array_equal(actions, undisturbed)
    # nor has the other thread anything of it: without a state, each of its chunks has just begun
    assert all(np.array_equal(other, others[0]) for other in others)
