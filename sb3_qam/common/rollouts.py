"""Off-policy rollouts of a policy that has a state, such as the rest of a chunk of actions."""

from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutReturn
from stable_baselines3.common.vec_env import VecEnv

from sb3_qam.common.buffers import OfflineBuffer, end_trajectories
from sb3_qam.common.checks import check_finite_observation
from sb3_qam.common.chunks import ChunkedPolicy
from sb3_qam.datasets.rewards import RewardTransform, successes_of_step


class StatefulRollouts(OffPolicyAlgorithm):
    """
    What the policy's ``predict()`` returns as its state goes into the next call, and environments that were reset
    begin without one. The state belongs to the rollout, whoever else calls ``predict()`` meanwhile, and is saved with
    the model. Rewards are transformed on their way into the replay buffer.

    A step that a callback or Ctrl-C cuts short is never stored by SB3: when training resumes after one, the
    environments are reset first, so that no trajectory has a gap.
    """

    policy: ChunkedPolicy
    reward_transform: RewardTransform | None = None
    offline_buffer: OfflineBuffer | None = None
    offline_fraction: float | None = None
    _rollout_state: tuple[np.ndarray, ...] | None = None
    _step_pending = False
    # Whether the policy knows more than random actions do before it has any experience
    _has_learned = False
    # How many of num_timesteps are gradient steps
    _n_gradient_timesteps = 0

    def collect_rollouts(self, env: VecEnv, *args: Any, **kwargs: Any) -> RolloutReturn:
        rollout = super().collect_rollouts(env, *args, **kwargs)
        # SB3 counts gradient steps toward learning_starts, where there may be no experience to learn from yet
        while self._waits_for_experience() and rollout.continue_training:
            if self.num_timesteps >= self._total_timesteps:
                return rollout._replace(continue_training=False)
            rollout = super().collect_rollouts(env, *args, **kwargs)
        return rollout

    def _waits_for_experience(self) -> bool:
        """:return: Whether updates are to draw online data alone, of which there is less than ``learning_starts``"""
        draws_offline = self.offline_buffer is not None and self.offline_fraction != 0
        return not draws_offline and self.num_timesteps - self._n_gradient_timesteps <= self.learning_starts

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        self._step_pending = True
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
        if transform is not None:
            successes = successes_of_step(infos, dones) if transform.needs_success else None
            stored_dones = transform.terminations(dones, successes)
            if vec_normalize is None:
                reward = transform(reward, successes)
            else:
                # From where SB3 takes what it stores
                vec_normalize.old_reward = transform(vec_normalize.old_reward, successes)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, stored_dones, infos)
        # An episode ends where the environment says so, whatever is stored of it
        self._last_episode_starts = dones
        self._step_pending = False

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
