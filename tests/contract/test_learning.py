"""The algorithms learn what SB3's tests ask of SAC, and QAM from images what it learns from vectors."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise

from sb3_qam import IFQL, QAM, ReBRAC
from sb3_qam.datasets.hdf5 import UNCOMPRESSED
from sb3_qam.networks.image_extractors import ImpalaCNN
from tests.conftest import record, write_dataset
from tests.contract.conftest import Algorithm


@pytest.mark.parametrize(
    ("algorithm", "policy", "variant"),
    [
        (QAM, "MlpPolicy", {"inverse_temperature": 10.0, "flow_steps": 5}),
        (QAM, "MlpPolicy", {"inverse_temperature": 10.0, "flow_steps": 5, "distill_coef": 1.0}),
        (QAM, "MultiInputPolicy", {"inverse_temperature": 10.0, "flow_steps": 5}),
        (IFQL, "MlpPolicy", {"flow_steps": 5, "learning_starts": 200}),
        (ReBRAC, "MlpPolicy", {"action_noise": NormalActionNoise(np.zeros(1), np.full(1, 0.2))}),
    ],
    ids=str,
)
def test_the_identity_in_four_hundred_steps(algorithm: type[Algorithm], policy: str, variant: dict):
    """
    The environment, the sizes, the steps and the threshold with which SB3 tests SAC; 100 is the most there is. Acting
    is as good as sampling, and what is sampled is as sharp as the temperature.
    """
    env: gym.Env = IdentityEnvBox(eps=0.5)
    if policy == "MultiInputPolicy":
        env = TransformObservation(env, lambda shown: {"shown": shown}, spaces.Dict(shown=env.observation_space))
    kwargs = {"learning_rate": 1e-3, "gamma": 0.95, "policy_kwargs": {"net_arch": [64, 64]}, "seed": 0}
    model = algorithm(policy, env, **kwargs, **variant).learn(400)
    assert evaluate_policy(model, model.get_env(), n_eval_episodes=20, warn=False)[0] > 90


@pytest.mark.slow
def test_pendulum_with_every_default_and_no_data():
    """A pendulum that hangs is worth about -1200, a clone of random actions as well."""
    model = QAM("FlowPolicy", "Pendulum-v1", seed=0).learn(10_000)
    env = make_vec_env("Pendulum-v1", 20, seed=1000)
    for deterministic in (True, False):
        assert evaluate_policy(model, env, n_eval_episodes=20, deterministic=deterministic)[0] > -250


class ShowsTheAction(gym.Env):
    """
    A reward of 1 for an action within 0.5 of the one that is wanted. An image shows it by the place of a bar; where
    there is a vector too, it is the sum of both.

    :param with_vector: Whether observations are a Dict of both
    """

    action_space = spaces.Box(-1.0, 1.0, (1,))
    image_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)

    def __init__(self, with_vector: bool) -> None:
        self.with_vector = with_vector
        both = spaces.Dict(image=self.image_space, vector=spaces.Box(-1.0, 1.0, (1,)))
        self.observation_space = both if with_vector else self.image_space

    def _observation(self) -> Any:
        shown, vector = self.np_random.uniform(-1, 1, (2, 1)).astype(np.float32)
        self.wanted = np.clip(shown + vector, -1, 1) if self.with_vector else shown
        image = np.zeros((36, 36, 1), np.uint8)
        left = round(15 * (shown.item() + 1))
        image[:, left : left + 6] = 255
        return {"image": image, "vector": vector} if self.with_vector else image

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_steps = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        reward = float((np.abs(action - self.wanted) < 0.5).all())
        return self._observation(), reward, False, self.n_steps >= 20, {}


@pytest.mark.parametrize(
    ("policy", "features", "n_steps"),
    [
        ("CnnPolicy", {"features_dim": 32}, 500),
        pytest.param("MultiInputPolicy", {"cnn_output_dim": 32}, 1000, marks=pytest.mark.slow),
    ],
)
def test_an_action_that_an_image_shows(policy: str, features: dict, n_steps: int):
    model = QAM(
        policy,
        ShowsTheAction(with_vector=policy == "MultiInputPolicy"),
        learning_rate=1e-3,
        buffer_size=1000,
        batch_size=64,
        gamma=0.5,
        inverse_temperature=10.0,
        best_of_n=4,
        flow_steps=5,
        policy_kwargs={"net_arch": [64], "features_extractor_kwargs": features},
        seed=0,
    )
    before = evaluate_policy(model, model.get_env(), n_eval_episodes=10, warn=False)[0]
    model.learn(n_steps)
    # of 20 rewards
    assert before < 13
    assert evaluate_policy(model, model.get_env(), n_eval_episodes=10, warn=False)[0] > 16


@pytest.mark.slow
def test_a_dataset_of_images_teaches_what_its_random_actions_were_worth():
    env = ShowsTheAction(with_vector=False)
    dataset = write_dataset(record(env, 40), env.observation_space, env.action_space, **UNCOMPRESSED)
    extractor_kwargs = {"n_channels": [8, 8, 16], "n_blocks": 1, "features_dim": 32}
    extractor = {"features_extractor_class": ImpalaCNN, "features_extractor_kwargs": extractor_kwargs}
    model = QAM(
        "CnnPolicy",
        env,
        learning_rate=1e-3,
        batch_size=32,
        gamma=0.5,
        inverse_temperature=10.0,
        flow_steps=5,
        offline_dataset=dataset,
        # a shifted image shows another action: by two pixels of the 30 that it moves in, one 7% away
        random_shift=2,
        policy_kwargs={"net_arch": [64], **extractor},
        seed=0,
    )
    model.pretrain(gradient_steps=300)
    assert evaluate_policy(model, model.get_env(), n_eval_episodes=10, warn=False)[0] > 16
