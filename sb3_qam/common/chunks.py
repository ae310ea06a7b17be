"""A policy that acts in chunks: the rest of a chunk is the state of ``predict()``."""

import numpy as np
from stable_baselines3.common.policies import BasePolicy

from sb3_qam.common.buffers import map_observations, n_rows, take_rows
from sb3_qam.common.checks import check_finite_observation

# Models are saved with the state of their rollout
from sb3_qam.runtime import ChunkExecution, ChunkState

__all__ = ["ChunkState", "ChunkedPolicy"]


class ChunkedPolicy(BasePolicy):
    """
    Base of policies that act in chunks. How chunks are executed can be set at any time, for acting alone: rollouts of
    training are open loop, as the critics value chunks. Settings are not saved.

    Arguments are those of SB3's ``BasePolicy``.
    """

    # Number of actions in a chunk
    chunk_size: int = 1
    # As in ChunkExecution
    replan_every: int | None = None
    ensemble_decay: float | None = None

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        """
        Rescale the action from [-1, 1] to [low, high].

        :param scaled_action: Action to un-scale
        :return: The action, inside the space whatever is lost in rounding
        """
        unscaled = super().unscale_action(scaled_action)
        return np.clip(unscaled, self.action_space.low, self.action_space.high)  # type: ignore[attr-defined]

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        open_loop: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Get the policy action from an observation. With chunks, the rest of each environment's chunk is the state:
        give it back, as to a recurrent policy, and chunks are executed as ``replan_every`` and ``ensemble_decay``
        say, by default open loop; without it a new chunk begins.

        :param observation: the input observation
        :param state: what the last call returned
        :param episode_start: whether each environment has just been reset, shape (n_envs,): a new chunk begins
        :param deterministic: Whether the noise that an action is made from is a function of the observation
            (the same observation gives the same action) or freshly drawn. In chunks, of the one that a chunk was made
            of
        :param open_loop: Whether to execute chunks to their end, whatever is set
        :return: the model's action and the next state, ``None`` where actions are not chunked
        :raises ValueError: if the state is not one of as many environments, an observation is not finite, or
            ``replan_every`` or ``ensemble_decay`` is out of range
        :raises FloatingPointError: if the action is not finite, as of parameters that have diverged
        """
        # SB3 explains the mistake of passing what env.reset() returns
        if isinstance(observation, tuple):
            return super().predict(observation)
        # Before anything moves: a robot would
        check_finite_observation(observation, self.observation_space)
        settings = () if open_loop else (self.replan_every, self.ensemble_decay)
        execution = ChunkExecution(self.chunk_size, *settings)
        if self.chunk_size == 1:
            return self._finite_actions(observation, deterministic), state
        observation = map_observations(np.asarray, observation)
        of_several = self.is_vectorized_observation(observation)
        if not of_several:
            observation = map_observations(lambda part: part[None], observation)
        actions, state = execution(
            lambda rows: self._finite_actions(take_rows(observation, rows), deterministic),
            n_rows(observation),
            self.action_space.shape,  # type: ignore[arg-type]
            state,
            episode_start,
        )
        return actions if of_several else actions[0], state

    def _finite_actions(self, observation: np.ndarray | dict[str, np.ndarray], deterministic: bool) -> np.ndarray:
        actions, _ = super().predict(observation, deterministic=deterministic)
        if not np.isfinite(actions).all():
            raise FloatingPointError(
                f"The policy's action is not finite: {actions}. No action was taken. Its parameters have diverged "
                "in training: go back to a checkpoint."
            )
        return actions
