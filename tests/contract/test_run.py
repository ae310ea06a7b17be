"""SB3's arguments of a run do here what they do in SAC."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_qam import QAM, FlowPolicy
from tests.contract.conftest import SMALL, Algorithm, RandomEnv, small


def counts_updates(algorithm: type[Algorithm]) -> type[Algorithm]:
    class CountsUpdates(algorithm):
        """Keeps (timesteps so far, gradient steps asked for) of every call of train()."""

        def train(self, gradient_steps: int, batch_size: int = 256) -> None:
            self.__dict__.setdefault("calls", []).append((self.num_timesteps, gradient_steps))
            super().train(gradient_steps, batch_size)

    return CountsUpdates


@pytest.mark.parametrize("policy", ["FlowPolicy", "MlpPolicy", FlowPolicy])
def test_a_policy_is_a_name_or_a_class(policy: str | type[FlowPolicy]):
    model = QAM(policy, "Pendulum-v1", **SMALL).learn(15)
    assert type(model.policy) is FlowPolicy
    assert model._n_updates == 5


@pytest.mark.parametrize("vec_env_class", [DummyVecEnv, SubprocVecEnv])
def test_several_environments(algorithm, vec_env_class: type[VecEnv]):
    kwargs = {"start_method": "fork"} if vec_env_class is SubprocVecEnv else {}
    env = make_vec_env("Pendulum-v1", n_envs=2, seed=0, vec_env_cls=vec_env_class, vec_env_kwargs=kwargs)
    try:
        model = counts_updates(algorithm)("MlpPolicy", env, train_freq=2, gradient_steps=-1, **small(algorithm)).learn(
            24
        )
    finally:
        env.close()
    assert model.replay_buffer.observations.shape == (SMALL["buffer_size"] // 2, 2, 3)
    # two steps of two environments between updates, and as many updates; the warm-up is not exceeded by the first 8
    assert model.calls == [(12, 4), (16, 4), (20, 4), (24, 4)]


def test_training_in_episodes(algorithm):
    env = gym.make("Pendulum-v1", max_episode_steps=8)
    model = counts_updates(algorithm)(
        "MlpPolicy", env, train_freq=(1, "episode"), gradient_steps=-1, **small(algorithm)
    ).learn(24)
    assert model.calls == [(16, 8), (24, 8)]


@pytest.mark.parametrize(("gradient_steps", "n_updates"), [(0, 0), (1, 5), (3, 15)])
def test_gradient_steps_after_each_rollout(algorithm, gradient_steps: int, n_updates: int):
    model = algorithm(
        "MlpPolicy", "Pendulum-v1", train_freq=(2, "step"), gradient_steps=gradient_steps, **small(algorithm)
    ).learn(20)
    assert model._n_updates == n_updates


def test_an_unknown_unit_of_train_freq_is_refused():
    with pytest.raises(ValueError, match="unit of the `train_freq` must be either 'step' or 'episode' not 'second'"):
        QAM("MlpPolicy", "Pendulum-v1", train_freq=(1, "second"))


def test_there_are_no_updates_while_learning_starts(algorithm):
    model = algorithm("MlpPolicy", "Pendulum-v1", **small(algorithm, learning_starts=30)).learn(30)
    assert model._n_updates == 0
    assert model.learn(1, reset_num_timesteps=False)._n_updates == 1


class Shifted(NormalActionNoise):
    """Noise that is its mean, and how often it has been reset."""

    n_resets = 0

    def __call__(self) -> np.ndarray:
        return self._mu.copy()

    def reset(self) -> None:
        self.n_resets += 1


def test_action_noise_is_added_to_what_is_executed_and_stored(algorithm):
    # twice the width of the action space: whatever the policy does, the noise decides
    noise = Shifted(np.array([2.0]), np.zeros(1))
    env = gym.make("Pendulum-v1", max_episode_steps=5)
    model = algorithm("MlpPolicy", env, action_noise=noise, **small(algorithm, learning_starts=0)).learn(10)
    assert (model.replay_buffer.actions[:10] == 1).all()
    # at the beginning and after each of two episodes
    assert noise.n_resets == 3


def test_action_noise_is_vectorized_and_reset_where_an_episode_ends(algorithm):
    noise = Shifted(np.array([-2.0]), np.zeros(1))
    env = DummyVecEnv([lambda n=n: gym.make("Pendulum-v1", max_episode_steps=n) for n in (4, 50)])
    model = algorithm("MlpPolicy", env, action_noise=noise, **small(algorithm, learning_starts=0)).learn(20)
    assert isinstance(model.action_noise, VectorizedActionNoise)
    often, rarely = (each.n_resets for each in model.action_noise.noises)
    # two episodes of four steps ended within ten
    assert often - rarely == 2
    assert (model.replay_buffer.actions[:10] == -1).all()


def test_ornstein_uhlenbeck_noise(algorithm):
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.5 * np.ones(1))
    algorithm("MlpPolicy", make_vec_env("Pendulum-v1", n_envs=2), action_noise=noise, **small(algorithm)).learn(16)


def test_a_schedule_reaches_every_parameter_group_of_every_optimizer(algorithm):
    rates = []

    class Rates(algorithm):
        def _optimize(self, losses, reported, targets):
            super()._optimize(losses, reported, targets)
            optimizers = [each.optimizer for each in self.policy.modules() if hasattr(each, "optimizer")]
            rates.append([group["lr"] for each in optimizers for group in each.param_groups])

    model = Rates("MlpPolicy", "Pendulum-v1", learning_rate=lambda left: 1e-2 * left, **small(algorithm)).learn(20)
    # one optimizer has all that is trained
    assert len(rates[0]) == 1
    trained = {parameter for network in model.policy.trained_networks() for parameter in network.parameters()}
    assert {parameter for group in model.policy.optimizer.param_groups for parameter in group["params"]} == trained
    assert [rate for (rate,) in rates] == pytest.approx([1e-2 * (1 - step / 20) for step in range(11, 21)])


def test_the_interval_of_target_updates_counts_gradient_steps_over_all_of_training():
    moved = []

    class Watch(QAM):
        def _optimize(self, losses, reported, targets):
            before = [
                parameter.clone() for target, _ in self.policy.target_pairs() for parameter in target.parameters()
            ]
            super()._optimize(losses, reported, targets)
            after = [parameter for target, _ in self.policy.target_pairs() for parameter in target.parameters()]
            moved.append(any(not th.equal(*pair) for pair in zip(before, after, strict=True)))

    kwargs = small(target_update_interval=3, learning_starts=0)
    # a call of train() for each step, as SB3's default has it
    Watch("MlpPolicy", "Pendulum-v1", **kwargs).learn(8)
    assert moved == [True, False, False, True, False, False, True, False]
    moved.clear()
    Watch("MlpPolicy", "Pendulum-v1", gradient_steps=4, train_freq=4, **kwargs).learn(8)
    assert moved == [True, False, False, True, False, False, True, False]


def test_with_tau_one_the_targets_are_copies_from_before_the_last_step():
    model = QAM("MlpPolicy", "Pendulum-v1", tau=1.0, target_update_interval=2, **small(learning_starts=0)).learn(2)
    before = [[parameter.clone() for parameter in source.parameters()] for _, source in model.policy.target_pairs()]
    model.train(gradient_steps=1, batch_size=8)
    for (target, _), copied in zip(model.policy.target_pairs(), before, strict=True):
        for parameter, expected in zip(target.parameters(), copied, strict=True):
            th.testing.assert_close(parameter, expected, rtol=0, atol=0)


@pytest.mark.parametrize("value", [0, 1.5])
def test_an_interval_that_is_no_positive_integer_is_refused(value: float):
    with pytest.raises(ValueError, match=f"target_update_interval must be an integer of at least 1, got {value}"):
        QAM("MlpPolicy", "Pendulum-v1", target_update_interval=value)


def test_a_truncated_episode_bootstraps_and_a_terminated_one_does_not(algorithm):
    class Ends(RandomEnv):
        def __init__(self, terminates: bool) -> None:
            super().__init__(spaces.Box(-1.0, 1.0, (2,)))
            self.terminates = terminates

        def step(self, action: np.ndarray):
            observation, reward, _, ended, info = super().step(action)
            return observation, reward, ended and self.terminates, ended and not self.terminates, info

    for terminates in (False, True):
        model = algorithm("MlpPolicy", Ends(terminates), **small(algorithm)).learn(20)
        assert model.replay_buffer.dones[:20, 0].tolist() == ([0.0] * 9 + [1.0]) * 2
        masks = model._sample_batch(100).masks
        assert masks.all() if not terminates else 0 < masks.mean() < 1


def test_the_last_observation_of_an_episode_is_stored_and_not_the_one_after_the_reset(algorithm):
    env = RandomEnv(spaces.Box(-1.0, 1.0, (2,)))
    seen = []

    class Keeps(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(self.locals["infos"][0].get("terminal_observation", self.locals["new_obs"][0]))
            return True

    model = algorithm("MlpPolicy", env, **small(algorithm)).learn(20, callback=Keeps())
    np.testing.assert_array_equal(model.replay_buffer.next_observations[:20, 0], np.stack(seen))


@pytest.mark.parametrize("space", [spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(4)], ids=str)
def test_memory_can_be_saved_where_timeouts_are_not_kept_apart(algorithm, space: spaces.Space):
    kwargs = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    model = algorithm("MlpPolicy", RandomEnv(space), **kwargs, **small(algorithm)).learn(30)
    assert not hasattr(model.replay_buffer, "next_observations")
    assert model._n_updates == 20
    with pytest.warns(UserWarning, match="last trajectory in the replay buffer will be truncated"):
        model.learn(15)


def test_saving_memory_is_refused_where_it_would_go_wrong():
    with pytest.raises(ValueError, match=r"optimize_memory_usage=True .*dict\(handle_timeout_termination=False\)"):
        QAM("MlpPolicy", "Pendulum-v1", optimize_memory_usage=True)
    env = RandomEnv(spaces.Dict(a=spaces.Box(-1.0, 1.0, (2,))))
    kwargs = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    with pytest.raises(ValueError, match="DictReplayBuffer does not support optimize_memory_usage=True, leave it"):
        QAM("MultiInputPolicy", env, **kwargs)
    with pytest.raises(ValueError, match="SequenceReplayBuffer does not support optimize_memory_usage=True, leave it"):
        QAM("MlpPolicy", "Pendulum-v1", n_steps=3, **kwargs)


@pytest.mark.parametrize(("n_before", "n_after"), [(3, 1), (1, 3), (2, 4)])
def test_noise_of_a_model_that_is_loaded_with_another_number_of_environments(
    algorithm, n_before: int, n_after: int, tmp_path
):
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(1), np.full(1, 0.1))
    envs = [make_vec_env("Pendulum-v1", n_envs=n) for n in (n_before, n_after)]
    algorithm("MlpPolicy", envs[0], action_noise=noise, **small(algorithm)).learn(12).save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=envs[1]).learn(24)
    assert loaded.replay_buffer.actions.shape[1] == n_after
    assert getattr(loaded.action_noise, "n_envs", 1) == n_after
