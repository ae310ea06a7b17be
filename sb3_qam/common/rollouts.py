"""Off-policy rollouts of a policy that has a state, such as the rest of a chunk of actions."""

from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFreq
from stable_baselines3.common.vec_env import VecEnv

from sb3_qam.common.buffers import OfflineBuffer, SequenceReplayBuffer, end_trajectories
from sb3_qam.common.checks import check_finite_observation, check_finite_values
from sb3_qam.common.chunks import ChunkedPolicy
from sb3_qam.common.normalization import kept_statistics
from sb3_qam.datasets.rewards import SUCCESS_KEYS, RewardTransform, says_success, successes_of_step


class StatefulRollouts(OffPolicyAlgorithm):
    """
    What the policy's ``predict()`` returns as its state goes into the next call, and environments that were reset
    begin without one. The state belongs to the rollout, whoever else calls ``predict()`` meanwhile, and is saved with
    the model. Rewards are transformed on their way into the replay buffer, which takes no step that is not finite.

    The step at which a callback stops training is stored, too. One that Ctrl-C or an error cuts short is not: when
    training resumes after it, the environments are reset first, so that no trajectory has a gap.
    """

    policy: ChunkedPolicy
    reward_transform: RewardTransform | None = None
    offline_buffer: OfflineBuffer | None = None
    offline_fraction: float | None = None
    _rollout_state: tuple[np.ndarray, ...] | None = None
    _step_pending = False
    # Whether the environment has ever said of a step if it was a success
    _says_success = False
    # Undoes what a step does to VecNormalize
    _restore_statistics: Callable[[], None] | None = None
    # Whether the policy knows more than random actions do before it has any experience
    _has_learned = False
    # How many of num_timesteps are gradient steps
    _n_gradient_timesteps = 0

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        *args: Any,
        **kwargs: Any,
    ) -> RolloutReturn:
        arguments = (env, callback, train_freq, replay_buffer, *args)
        rollout = super().collect_rollouts(*arguments, **kwargs)
        # SB3 counts gradient steps toward learning_starts, where there may be no experience to learn from yet
        while self._waits_for_experience() and rollout.continue_training:
            if self.num_timesteps >= self._total_timesteps:
                return rollout._replace(continue_training=False)
            rollout = super().collect_rollouts(*arguments, **kwargs)
        if self._step_pending:
            # SB3 returns before it stores the step, which may be the one with the reward
            step = callback.locals
            self._update_info_buffer(step["infos"], step["dones"])
            names = ("buffer_actions", "new_obs", "rewards", "dones", "infos")
            self._store_transition(replay_buffer, *(step[name] for name in names))
            self._episode_num += int(step["dones"].sum())
        return rollout

    def _waits_for_experience(self) -> bool:
        """:return: Whether updates are to draw online data alone, of which there is less than ``learning_starts``"""
        draws_offline = self.offline_buffer is not None and self.offline_fraction != 0
        return not draws_offline and self.num_timesteps - self._n_gradient_timesteps <= self.learning_starts

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        self._step_pending = True
        if self._vec_normalize_env is not None:
            self._restore_statistics = kept_statistics(self._vec_normalize_env)
        assert self._last_obs is not None  # for mypy
        if self.num_timesteps < learning_starts and not self._has_learned:
            check_finite_observation(self._last_obs, self.observation_space)
            return super()._sample_action(learning_starts, action_noise, n_envs)
        # As SB3, which has no state. The critics value whole chunks, however they are executed in acting
        action, self._rollout_state = self.policy.predict(
            self._last_obs, self._rollout_state, self._last_episode_starts, open_loop=True
        )
        scaled_action = self.policy.scale_action(action)
        if action_noise is not None:
            scaled_action = np.clip(scaled_action + action_noise(), -1, 1)
            check_finite_values("action, with action_noise,", scaled_action, "Nothing was stepped")
        return self.policy.unscale_action(scaled_action), scaled_action

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        transform, vec_normalize, stored_dones = self.reward_transform, self._vec_normalize_env, dones
        if vec_normalize is not None:
            # What SB3 stores instead
            reward = vec_normalize.old_reward
        if transform is not None:
            successes = self._successes(dones, infos) if transform.needs_success else None
            reward, stored_dones = transform(reward, successes), transform.terminations(dones, successes)
            if successes is not None and transform.terminate_on_success:
                # SB3 would take a success at the time limit for a timeout, which cuts nothing
                infos = [
                    {**info, "TimeLimit.truncated": False} if success else info
                    for info, success in zip(infos, successes, strict=True)
                ]
        self._check_finite_step(new_obs, reward, infos)
        if vec_normalize is not None:
            vec_normalize.old_reward = reward
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, stored_dones, infos)
        if isinstance(replay_buffer, SequenceReplayBuffer):
            replay_buffer.ends[replay_buffer.pos - 1] = dones
        # An episode ends where the environment says so, whatever is stored of it
        self._last_episode_starts = dones
        self._step_pending = False

    def _successes(self, dones: np.ndarray, infos: list[dict[str, Any]]) -> np.ndarray:
        """
        :return: Whether the step succeeded in each environment
        :raises ValueError: if an episode has ended and nothing has ever been said of success
        """
        self._says_success = self._says_success or says_success(infos)
        if not self._says_success and dones.any():
            keys = sorted(infos[int(dones.argmax())])
            raise ValueError(
                "The environment does not say in its infos whether a step was a success (expected "
                f"{' or '.join(map(repr, SUCCESS_KEYS))} at the end of an episode at the latest, got {keys}): use a "
                "reward_transform without success."
            )
        return successes_of_step(infos)

    def _check_finite_step(self, new_obs: Any, reward: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """:raises ValueError: if what is about to be stored has a value that is not finite"""
        observations = [new_obs if self._vec_normalize_env is None else self._vec_normalize_env.old_obs]
        observations += [info["terminal_observation"] for info in infos if "terminal_observation" in info]
        consequence = f"Nothing of the step at timestep {self.num_timesteps} is stored"
        try:
            check_finite_values("reward", reward, consequence)
            for each in observations:
                check_finite_observation(each, self.observation_space, consequence)
        except ValueError:
            if self._restore_statistics is not None:
                self._restore_statistics()
            raise

    def _begin_rollouts(self, reset_num_timesteps: bool) -> None:
        """
        What comes before SB3 sets up training, which may reset the environments.

        :param reset_num_timesteps: whether or not to reset the current timestep number
        """
        assert self.env is not None  # for mypy
        if self._step_pending:
            self._last_obs, self._step_pending = None, False
        if reset_num_timesteps or self._last_obs is None:
            self._rollout_state = None
            end_trajectories(self.replay_buffer)
        if isinstance(self.action_noise, VectorizedActionNoise) and self.action_noise.n_envs != self.env.num_envs:
            # Of a model that was saved with another number of environments; SB3 makes it again for these
            self.action_noise = self.action_noise.base_noise
