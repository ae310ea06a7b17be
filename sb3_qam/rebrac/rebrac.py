"""Revisited Behavior-Regularized Actor-Critic: the algorithm, in reading order."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_qam.common.buffers import TransitionBatch
from sb3_qam.common.optimization import JointOptimization
from sb3_qam.networks.actors import DeterministicActor
from sb3_qam.networks.critics import pessimistic_value
from sb3_qam.networks.features import frozen
from sb3_qam.rebrac.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, ReBRACPolicy
from sb3_qam.utils.checks import check_in_range


class ReBRAC(JointOptimization):
    r"""
    Revisited Behavior-Regularized Actor-Critic (ReBRAC)

    TD3 with a deterministic actor that is kept near the actions of the data,

    .. math:: -E\, Q(s, \mu(s)) / |Q| + \alpha\, E\, \lVert \mu(s) - a \rVert^2,

    in the form that the paper of QAM compares with: one coefficient, in the actor's loss alone.

    Paper: Tarasov et al., https://arxiv.org/abs/2305.09836

    :param policy: The policy model to use (ReBRACPolicy for vectors and Dicts of them, MlpPolicy, CnnPolicy,
        MultiInputPolicy)
    :param env: The environment to learn from (if registered in Gym, can be str). Can be None as for QAM
    :param learning_rate: learning rate of the one optimizer for all networks,
        it can be a function of the current progress remaining (from 1 to 0)
    :param bc_coef: alpha >= 0, how strongly the actor is kept near the data
    :param target_update_interval: update the target networks every ``target_update_interval`` gradient steps. Unlike
        TD3's ``policy_delay``, and as in the code that the recorded numbers are of, the actor learns in every one
    :param target_policy_noise: Standard deviation of Gaussian noise added to target policy
        (smoothing noise)
    :param target_noise_clip: Limit for absolute value of target policy smoothing noise.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param kwargs: By name all that :class:`~sb3_qam.QAM` shares with other algorithms, with its defaults: the arguments
        of SB3's off-policy algorithms, of which ``action_noise`` explores, ``n_steps``, ``chunk_size``, ``pessimism``,
        ``max_grad_norm`` (no clipping by default), those of offline data, ``reward_transform``, ``random_shift``
    :raises ValueError: if an argument is out of range, the action space is not a bounded Box, or the dataset is
        unusable or does not fit the environment
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "ReBRACPolicy": ReBRACPolicy,
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: ReBRACPolicy
    actor: DeterministicActor
    actor_target: DeterministicActor

    def __init__(
        self,
        policy: str | type[ReBRACPolicy],
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 3e-4,
        *,
        bc_coef: float = 0.1,
        target_update_interval: int = 2,
        target_policy_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(policy, env, learning_rate, target_update_interval=target_update_interval, **kwargs)
        self.bc_coef = bc_coef
        self.target_policy_noise = target_policy_noise
        self.target_noise_clip = target_noise_clip

        if _init_setup_model:
            self._setup_model()
            self._check_offline_dataset()

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        for name in ("bc_coef", "target_policy_noise", "target_noise_clip"):
            check_in_range(name, getattr(self, name), 0)

    def _create_aliases(self) -> None:
        super()._create_aliases()
        self.actor, self.actor_target = self.policy.actor, self.policy.actor_target

    def _sample_noise(self, batch_size: int) -> th.Tensor:
        return th.randn(batch_size, self.policy.action_dim, device=self.device)

    def _update(self, batch: TransitionBatch, noise: th.Tensor) -> None:
        # Critic loss: every Q_i(s, a) is regressed on the TD target
        features = self.critic.features(batch.observations)
        q_values = self.critic(features, batch.actions)
        critic_loss = (batch.valid * (q_values - self.td_target(batch, noise)) ** 2).mean()

        # Actor loss: its value, in units of the value itself
        actions = self.actor(self.actor.features(batch.observations))
        with frozen(self.critic):
            values = pessimistic_value(self.critic(features.detach(), actions), self.pessimism)
        actor_loss = -values.mean() / values.detach().abs().mean()

        # Behavior penalty: keeps it near the data
        bc_loss = self._distance(actions, batch)

        losses = {"critic_loss": critic_loss, "actor_loss": actor_loss, "bc_penalty": self.bc_coef * bc_loss}
        reported = {
            "bc_loss": bc_loss,
            "q_mean": q_values.mean(),
            "q_std": q_values.std(dim=0, correction=0).mean(),
        }
        self._optimize(losses, reported, self.policy.target_pairs())

    def _targets_are_due(self) -> bool:
        # In the last of so many updates, as the published code does, not in the first
        return (self._n_updates + 1) % self.target_update_interval == 0

    @staticmethod
    def _distance(actions: th.Tensor, batch: TransitionBatch) -> th.Tensor:
        """:return: Mean squared distance of actions to those of a batch, a scalar"""
        return (batch.valid * ((actions - batch.actions) ** 2).sum(dim=-1)).mean()

    def bc_loss(self, batch: TransitionBatch, noise: th.Tensor) -> th.Tensor:
        return self._distance(self.actor(self.actor.features(batch.observations)), batch)

    @th.no_grad()
    def td_target(self, batch: TransitionBatch, noise: th.Tensor) -> th.Tensor:
        """
        y = R_h + gamma^h m (mean_i Q_i(s', a') - rho std_i Q_i(s', a')) with target networks, a' their action with
        clipped noise.

        :param batch: A batch
        :param noise: Standard normal, shape (batch, A)
        :return: y, shape (batch,)
        """
        smoothing = (self.target_policy_noise * noise).clamp(-self.target_noise_clip, self.target_noise_clip)
        next_actions = self.actor_target(self.actor_target.features(batch.next_observations)) + smoothing
        next_features = self.critic_target.features(batch.next_observations)
        next_q_values = self.critic_target(next_features, next_actions.clamp(-1, 1))
        return batch.rewards + batch.discounts * batch.masks * pessimistic_value(next_q_values, self.pessimism)
