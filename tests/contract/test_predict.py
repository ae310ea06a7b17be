"""predict() takes and gives what SB3's does."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_qam import QAM
from sb3_qam.common.export import export_onnx
from tests.contract.conftest import Algorithm, RandomEnv, images, small


def test_single_and_batched_observations(model: Algorithm):
    single, state = model.predict(np.zeros(3, np.float32))
    assert (type(single), single.shape, single.dtype, state) == (np.ndarray, (1,), np.float32, None)
    batch, state = model.predict(np.zeros((4, 3), np.float32))
    assert (type(batch), batch.shape, batch.dtype, state) == (np.ndarray, (4, 1), np.float32, None)
    # a batch of one is a batch
    assert model.predict(np.zeros((1, 3)))[0].shape == (1, 1)
    assert model.action_space.contains(single)


@pytest.mark.parametrize("observation", [[0.1, 0.2, 0.3], np.array([0.1, 0.2, 0.3]), th.tensor([0.1, 0.2, 0.3])])
def test_lists_other_types_and_tensors_are_taken_for_arrays(observation, model: Algorithm):
    expected, _ = model.predict(np.array([0.1, 0.2, 0.3], np.float32), deterministic=True)
    np.testing.assert_allclose(model.predict(np.asarray(observation), deterministic=True)[0], expected, rtol=1e-5)


def test_a_given_state_comes_back_where_there_are_no_chunks(model: Algorithm):
    state = (np.ones(3),)
    assert model.predict(np.zeros(3), state=state, episode_start=np.ones(1, bool))[1] is state


def test_a_row_of_a_batch_is_what_it_would_be_alone(model: Algorithm):
    observations = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    together, _ = model.predict(observations, deterministic=True)
    alone = np.stack([model.predict(each, deterministic=True)[0] for each in observations])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_chunks_start_again_where_an_episode_does_and_nowhere_else(algorithm):
    model = algorithm("MlpPolicy", make_vec_env("Pendulum-v1", n_envs=2), chunk_size=3, **small(algorithm))
    observations = np.zeros((2, 3), np.float32)
    _, state = model.predict(observations + 1)
    second = state.actions[:, 1].copy()
    actions, state = model.predict(observations, state, episode_start=np.array([True, False]))
    np.testing.assert_array_equal(actions[1], second[1])
    assert not np.array_equal(actions[0], second[0])
    assert state.position.tolist() == [1, 2]


def test_dict_observations_single_and_batched(algorithm):
    space = spaces.Dict(vector=spaces.Box(-1.0, 1.0, (2,)), image=images(), number=spaces.Discrete(3))
    model = algorithm("MultiInputPolicy", RandomEnv(space), **small(algorithm))
    single = space.sample()
    assert model.predict(single)[0].shape == (2,)
    batch = {key: np.stack([value, value]) for key, value in single.items()}
    actions, _ = model.predict(batch, deterministic=True)
    assert actions.shape == (2, 2)
    np.testing.assert_allclose(actions[0], model.predict(single, deterministic=True)[0], atol=1e-5)


@pytest.mark.parametrize("channels_first", [False, True])
def test_images_come_as_the_environment_or_as_the_model_has_them(algorithm, channels_first: bool):
    env = RandomEnv(images(channels_first))
    model = algorithm("CnnPolicy", env, **small(algorithm))
    assert model.observation_space.shape == (3, 36, 36)
    image = env.observation_space.sample()
    other = image if channels_first else image.transpose(2, 0, 1)
    single = [model.predict(each, deterministic=True)[0] for each in (image, other)]
    np.testing.assert_array_equal(*single)
    batched = [model.predict(each[None], deterministic=True)[0] for each in (image, other)]
    np.testing.assert_array_equal(*batched)
    assert batched[0].shape == (1, 2)


@pytest.mark.parametrize("observation", [np.zeros(2), np.zeros((1, 4)), np.zeros((2, 2, 3))], ids=np.shape)
def test_observations_of_another_shape_are_refused(observation: np.ndarray, model: Algorithm):
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        model.predict(observation)


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_what_reset_of_gymnasium_returns_is_explained(algorithm, chunk_size: int):
    model = algorithm("MlpPolicy", "Pendulum-v1", chunk_size=chunk_size, **small(algorithm))
    with pytest.raises(ValueError, match="mixing Gym API with SB3 VecEnv API"):
        model.predict(gym.make("Pendulum-v1").reset())


def test_evaluation_and_training_are_modes_of_dropout_and_normalization(algorithm):
    """predict() acts in evaluation mode, whatever the mode was before, and train() returns to training mode."""
    modes = []

    class Watch(algorithm):
        def _optimize(self, losses, reported, targets):
            modes.append(self.policy.training)
            super()._optimize(losses, reported, targets)

    model = Watch("MlpPolicy", "Pendulum-v1", **small(algorithm)).learn(12)
    assert modes == [True, True]
    model.predict(np.zeros(3))
    assert not model.policy.training
    model.train(gradient_steps=1, batch_size=8)
    assert model.policy.training
    model.learn(1, reset_num_timesteps=False)
    assert modes == [True] * len(modes)


def test_the_policy_alone_acts_as_the_model_does(model: Algorithm):
    observations = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    by_model, by_policy = (each.predict(observations, deterministic=True)[0] for each in (model, model.policy))
    np.testing.assert_array_equal(by_model, by_policy)
    tensor = model.policy(th.as_tensor(observations), deterministic=True)
    # a forward pass gives scaled actions, as that of every squashing policy of SB3
    np.testing.assert_allclose(model.policy.unscale_action(tensor.detach().numpy()), by_model, atol=1e-6)


def test_acting_takes_no_gradient(model: Algorithm):
    model.policy.optimizer.zero_grad()
    assert not model.policy.forward(th.zeros(2, 3)).requires_grad
    model.predict(np.zeros(3))
    assert all(parameter.grad is None for parameter in model.policy.parameters())


def test_a_caller_needs_numpy_alone(model: Algorithm, tmp_path: Path):
    """A script that never imports torch itself loads the file and acts."""
    model.save(tmp_path / "model")
    script = f"""
        import numpy as np
        from sb3_qam import {type(model).__name__}
        model = {type(model).__name__}.load({str(tmp_path / "model")!r}, device="cpu")
        action, state = model.predict(np.zeros((2, 3)), deterministic=True)
        assert type(action) is np.ndarray and state is None
        print(repr(action.tolist()))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    np.testing.assert_allclose(eval(output), model.predict(np.zeros((2, 3)), deterministic=True)[0], atol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_evaluate_policy_runs_several_environments_of_different_length(algorithm, chunk_size: int):
    env = DummyVecEnv([lambda n=n: gym.make("Pendulum-v1", max_episode_steps=n) for n in (5, 7)])
    model = algorithm("MlpPolicy", env, chunk_size=chunk_size, **small(algorithm))
    rewards, lengths = evaluate_policy(
        model, env, n_eval_episodes=4, return_episode_rewards=True, deterministic=False, warn=False
    )
    assert len(rewards) == 4
    assert sorted(set(lengths)) == [5, 7]


def test_predict_acts_within_any_bounds():
    low, high = np.array([[-7.0, 0.5], [2.0, -1.0]], np.float32), np.array([[-3.0, 9.0], [2.5, 0.0]], np.float32)
    model = QAM("MlpPolicy", RandomEnv(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(low, high)), **small())
    actions, _ = model.predict(np.zeros((200, 3)))
    assert actions.shape == (200, 2, 2)
    assert ((actions >= low) & (actions <= high)).all()
    # and near each of them
    spread = (actions.max(axis=0) - actions.min(axis=0)) / (high - low)
    assert (spread > 0.8).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_an_observation_that_is_not_finite_has_no_action(algorithm, value: float, model: Algorithm):
    observations = np.zeros((3, 3))
    observations[1, 2] = value
    with pytest.raises(ValueError, match=r"The observation of environment 1 is not finite: .* at \[2\]\. No action"):
        model.predict(observations)
    with pytest.raises(ValueError, match=r"The observation of environment 0 is not finite"):
        model.predict(observations[1].tolist())
    space = spaces.Dict(image=images(), arm=spaces.Box(-np.inf, np.inf, (2,)), tool=spaces.Discrete(3))
    several = algorithm("MultiInputPolicy", RandomEnv(space), **small(algorithm))
    observation = {"image": np.zeros((2, 36, 36, 3), np.uint8), "arm": np.zeros((2, 2)), "tool": np.array([1, 2])}
    assert several.predict(observation)[0].shape == (2, 2)
    observation["arm"][1] = value
    with pytest.raises(ValueError, match="The observation 'arm' of environment 1 is not finite"):
        several.predict(observation)
    with pytest.raises(ValueError, match="The observation 'arm' of environment 0 is not finite"):
        several.predict({key: part[1] for key, part in observation.items()})


class Broken(RandomEnv):
    """At the fifth step of an episode something is not finite; it may be the last step."""

    def __init__(self, what: str) -> None:
        super().__init__(spaces.Box(-1.0, 1.0, (3,)))
        self.what, self.actions = what, []

    def step(self, action: np.ndarray) -> tuple:
        observation, reward, *rest = super().step(action)
        self.actions.append(action)
        if self.n_steps == 5 and self.what == "reward":
            reward = -np.inf
        elif self.n_steps == 5 and "observation" in self.what:
            observation = np.full_like(observation, np.nan)
            rest[0] = self.what == "last observation"
        return observation, reward, *rest


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("learning_starts", [0, 100])
@pytest.mark.parametrize("chunk_size", [1, 3])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("observation", r"The observation of environment 0 is not finite: nan at \[0\]"),
        ("last observation", r"The observation of environment 0 is not finite: nan at \[0\]"),
        ("reward", "The reward of environment 0 is not finite: -inf"),
    ],
)
def test_a_step_that_is_not_finite_is_not_stored(
    algorithm, learning_starts: int, chunk_size: int, what: str, message: str, normalized: bool
):
    env: Any = DummyVecEnv([lambda: Broken(what)])
    broken, env = env.envs[0], VecNormalize(env, norm_reward=False) if normalized else env
    kwargs = small(algorithm, learning_starts=learning_starts, gradient_steps=0)
    model = algorithm("MlpPolicy", env, chunk_size=chunk_size, **kwargs)
    with pytest.raises(ValueError, match=rf"{message}. Nothing of the step at timestep 5 is stored"):
        model.learn(30)
    assert len(broken.actions) == 5
    assert model.replay_buffer.size() == 4
    # Mended, it continues from there
    broken.what = "nothing"
    model.learn(6, reset_num_timesteps=False)
    assert np.isfinite(model.replay_buffer.observations[:10]).all()
    if normalized:
        assert np.isfinite(env.obs_rms.mean).all()
        # The reset when it was made, four steps, the reset afterwards and six steps
        assert env.obs_rms.count == pytest.approx(12, abs=0.01)


def test_action_noise_that_is_not_finite_moves_nothing(algorithm):
    env = Broken("nothing")
    noise = NormalActionNoise(np.full(2, np.nan), np.zeros(2))
    model = algorithm("MlpPolicy", env, action_noise=noise, **small(algorithm, learning_starts=0))
    with pytest.raises(ValueError, match="The action, with action_noise, of environment 0 is not finite: nan"):
        model.learn(5)
    assert not env.actions


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_parameters_that_diverged_do_not_act(algorithm, chunk_size: int, tmp_path: Path):
    model = algorithm("MlpPolicy", "Pendulum-v1", chunk_size=chunk_size, **small(algorithm))
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.fill_(th.nan)
    for deterministic in (True, False):
        with pytest.raises(FloatingPointError, match=r"(?s)action is not finite.*No action was taken.*go back to a"):
            model.predict(np.zeros(3, np.float32), deterministic=deterministic)
    with pytest.raises(FloatingPointError, match="action is not finite"):
        evaluate_policy(model, model.get_env(), n_eval_episodes=1, warn=False)
    with pytest.raises(ValueError, match="actions are not finite"):
        export_onnx(model, tmp_path / "policy.onnx")
    assert not (tmp_path / "policy.onnx").exists()


def test_an_adaptive_solver_that_finds_no_action_says_so():
    policy_kwargs = {"net_arch": [16], "ode_method": "dopri5"}
    model = QAM("MlpPolicy", "Pendulum-v1", **small(policy_kwargs=policy_kwargs))
    with th.no_grad():
        model.policy.policy_flow.mlp[-1].bias.fill_(th.nan)
    with pytest.raises(FloatingPointError, match=r"'dopri5' does not reach the end of the flow \(underflow in dt"):
        model.predict(np.zeros(3, np.float32))
