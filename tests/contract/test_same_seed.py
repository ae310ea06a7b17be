"""The same seed gives the same run."""

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise

from sb3_qam import IFQL, QAM, ReBRAC
from tests.contract.conftest import Algorithm, parameters_of, same_parameters, small


@pytest.mark.parametrize(
    ("algorithm", "variant"),
    [
        (QAM, {}),
        (QAM, {"action_noise": NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))}),
        (QAM, {"n_steps": 3}),
        (QAM, {"chunk_size": 3}),
        (QAM, {"edit_scale": 0.2, "best_of_n": 2}),
        (QAM, {"distill_coef": 1.0}),
        (QAM, {"kl_budget": 0.1}),
        (QAM, {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}),
        (IFQL, {"chunk_size": 3}),
        (ReBRAC, {"action_noise": NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))}),
    ],
    ids=str,
)
@pytest.mark.parametrize("n_envs", [1, 2])
def test_two_runs(algorithm: type[Algorithm], variant: dict, n_envs: int):
    def run(seed: int) -> tuple[Algorithm, np.ndarray]:
        env = make_vec_env("Pendulum-v1", n_envs=n_envs)
        model = algorithm("MlpPolicy", env, seed=seed, **small(algorithm, **variant)).learn(40)
        env = model.get_env()
        env.seed(seed)
        observations, rewards = env.reset(), []
        for _ in range(5):
            observations, reward, _, _ = env.step(model.predict(observations)[0])
            rewards.append(reward)
        return model, np.stack(rewards)

    (first, first_rewards), (second, second_rewards), (other, _) = run(0), run(0), run(1)
    assert same_parameters(parameters_of(first), parameters_of(second))
    np.testing.assert_array_equal(first_rewards, second_rewards)
    np.testing.assert_array_equal(first.replay_buffer.actions, second.replay_buffer.actions)
    assert not same_parameters(parameters_of(first), parameters_of(other))


def test_a_seed_concerns_networks_actions_and_the_environment(algorithm):
    first, second, other = (
        algorithm("MlpPolicy", gym.make("Pendulum-v1"), seed=seed, **small(algorithm)) for seed in (3, 3, 4)
    )
    assert same_parameters(parameters_of(first), parameters_of(second))
    assert not same_parameters(parameters_of(first), parameters_of(other))
    np.testing.assert_array_equal(first.get_env().reset(), second.get_env().reset())
    np.testing.assert_array_equal(first.action_space.sample(), second.action_space.sample())


def test_without_a_seed_runs_differ(algorithm):
    first, second = (algorithm("MlpPolicy", "Pendulum-v1", **small(algorithm)) for _ in range(2))
    assert not same_parameters(parameters_of(first), parameters_of(second))
