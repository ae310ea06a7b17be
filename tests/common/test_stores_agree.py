"""The same episodes give the same samples, whether they come from a dataset or from an environment."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_qam import QAM
from sb3_qam.common.buffers import as_transition_batch
from sb3_qam.datasets.rewards import RewardTransform
from tests.conftest import write_dataset

# Unbounded, as observations are numbered
OBSERVATIONS = spaces.Box(-np.inf, np.inf, (1,))
ACTIONS = spaces.Box(-1.0, 1.0, (2,))
GAMMA = 0.9
SMALL = {"batch_size": 4, "flow_steps": 2, "gamma": GAMMA, "policy_kwargs": {"net_arch": [4]}}

# Whether it succeeds, and its reward
steps = st.tuples(st.booleans(), st.floats(-2, 2, width=32))
# The steps, whether the last one is a termination, and whether it is a truncation if so
episodes = st.tuples(st.lists(steps, min_size=2, max_size=5), st.booleans(), st.booleans())
transforms = st.builds(
    RewardTransform,
    from_success=st.booleans(),
    sparse=st.booleans(),
    solved_at=st.floats(-1, 1),
    scale=st.sampled_from([1.0, 10.0, -0.5]),
    shift=st.sampled_from([0.0, -1.0]),
    terminate_on_success=st.booleans(),
)


class Planned(gym.Env):
    """Plays episodes one after the other and again from the first, and keeps what it was given and what it said."""

    observation_space, action_space = OBSERVATIONS, ACTIONS

    def __init__(self, plan: list[Any], number: int) -> None:
        self.plan, self.recorded = plan, []
        self.n_observations = 1000 * number

    def _observation(self) -> np.ndarray:
        self.n_observations += 1
        observation = np.full(1, self.n_observations, np.float32)
        self.recorded[-1]["observations"].append(observation)
        return observation

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self.current = self.plan[len(self.recorded) % len(self.plan)]
        names = ("observations", "actions", "rewards", "terminations", "truncations", "success")
        self.recorded.append({name: [] for name in names})
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        episode, (all_steps, terminates, truncates_too) = self.recorded[-1], self.current
        success, reward = all_steps[len(episode["rewards"])]
        is_last = len(episode["rewards"]) + 1 == len(all_steps)
        terminated = is_last and terminates
        truncated = is_last and (truncates_too or not terminates)
        for name, value in zip(episode, (None, action, reward, terminated, truncated, success), strict=True):
            if name != "observations":
                episode[name].append(value)
        return self._observation(), reward, terminated, truncated, {"is_success": success}

    def episodes(self) -> list[dict[str, Any]]:
        """The last one as far as it got; a dataset takes none of a single step that does not terminate."""
        return [
            {**episode, "infos": {"is_success": episode["success"]}}
            for episode in self.recorded
            if len(episode["rewards"]) > 1 or any(episode["terminations"])
        ]


@pytest.mark.filterwarnings("ignore:None of the .* episodes in the replay buffer")
@settings(max_examples=40)
@given(
    plans=st.lists(st.lists(episodes, min_size=1, max_size=3), min_size=1, max_size=3),
    transform=transforms,
    sequence=st.sampled_from([{}, {"n_steps": 2}, {"n_steps": 3}, {"chunk_size": 2}]),
    buffer_size=st.sampled_from([11, 100]),
    normalized=st.booleans(),
)
def test_offline_and_online_samples_agree(
    plans: list[Any], transform: RewardTransform, sequence: dict[str, int], buffer_size: int, normalized: bool
):
    envs = [Planned(plan, number) for number, plan in enumerate(plans)]
    vec_env: Any = DummyVecEnv([lambda env=env: env for env in envs])
    if normalized:
        vec_env = VecNormalize(vec_env, norm_obs=False, norm_reward=False)
    n_steps = 15
    model = QAM(
        "FlowPolicy",
        vec_env,
        reward_transform=transform,
        buffer_size=buffer_size * len(envs),
        learning_starts=1000,
        **sequence,
        **SMALL,
    )
    model.learn(n_steps * len(envs))
    online = online_samples(model)
    recorded = [episode for env in envs for episode in env.episodes()]
    dataset = write_dataset(recorded, OBSERVATIONS, ACTIONS)
    if model.sequence_length > max(len(each["rewards"]) for each in recorded):
        assert not online.valid.any()
        with pytest.raises(ValueError, match="is longer than every episode"):
            model.pretrain(dataset, gradient_steps=1)
        return
    model.pretrain(dataset, gradient_steps=1)
    buffer = model.offline_buffer
    offline = as_transition_batch(buffer._get_samples(np.arange(buffer.size())), GAMMA)
    row_of = {int(number): row for row, number in enumerate(offline.observations[:, 0])}
    online = type(online)(*(part[[int(number) in row_of for number in online.observations[:, 0]]] for part in online))
    rows = th.tensor([row_of[int(number)] for number in online.observations[:, 0]])
    # A full buffer has lost the oldest steps, and says so of no others
    np.testing.assert_array_equal(online.valid, offline.valid[rows])
    valid = online.valid > 0
    for name in ("actions", "next_observations", "rewards", "discounts", "masks"):
        found, expected = getattr(online, name)[valid], getattr(offline, name)[rows][valid]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=name)


def online_samples(model: QAM) -> Any:
    """Every step of every environment, most likely several times."""
    buffer = model.replay_buffer
    rows = np.repeat(np.arange(buffer.size()), 20)
    return as_transition_batch(buffer._get_samples(rows, model._vec_normalize_env), GAMMA)


@pytest.mark.parametrize("sequence", [{}, {"n_steps": 3}])
def test_a_success_at_the_time_limit_cuts_the_bootstrap(sequence: dict[str, int]):
    env = Planned([([(False, 0.0)] * 3 + [(True, 0.0)], False, True)], 0)
    model = QAM("FlowPolicy", env, reward_transform={"terminate_on_success": True}, **sequence, **SMALL).learn(4)
    buffer = model.replay_buffer
    assert (buffer.dones * (1 - buffer.timeouts))[:4, 0].tolist() == [0, 0, 0, 1]
