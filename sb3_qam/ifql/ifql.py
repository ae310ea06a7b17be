"""Implicit Flow Q-Learning: the algorithm, in reading order."""

from typing import Any, ClassVar, NamedTuple

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_qam.common.buffers import TransitionBatch
from sb3_qam.common.optimization import JointOptimization
from sb3_qam.common.policies import PolicyArgument
from sb3_qam.ifql.policies import CnnPolicy, FlowPolicy, MlpPolicy, MultiInputPolicy
from sb3_qam.networks.actors import VelocityField
from sb3_qam.networks.critics import pessimistic_value
from sb3_qam.networks.flows import flow_matching_loss
from sb3_qam.utils.checks import check_in_range, check_positive_int


class UpdateNoise(NamedTuple):
    """
    Every random draw of one update; A is the action dimension (of a chunk).

    :param bc_x0: Standard normal, the noise end of flow matching, shape (batch, A)
    :param bc_t: Uniform in [0, 1], flow times of flow matching, shape (batch, 1)
    """

    bc_x0: th.Tensor
    bc_t: th.Tensor


def expectile_loss(difference: th.Tensor, expectile: float) -> th.Tensor:
    """
    The asymmetric squared loss of IQL (https://arxiv.org/abs/2110.06169, equation 4): E[ \\|kappa - 1(u < 0)\\| u^2 ],
    least where the kappa-expectile of u is 0.

    :param difference: u, shape (batch,)
    :param expectile: kappa in (0, 1)
    :return: The loss, a scalar
    """
    weight = th.where(difference < 0, 1 - expectile, expectile)
    return (weight * difference**2).mean()


class IFQL(JointOptimization):
    r"""
    Implicit Flow Q-Learning (IFQL)

    Implicit Q-learning with a flow for a policy: V is an expectile of the critics over the actions of the data, and the
    target of the critics, so that no action outside of the data is ever valued in training. Acting draws many actions
    from a clone of the data and takes the one that the critics value most.

    .. math:: E\, |\kappa - 1(u < 0)|\, u^2, \quad u = \bar Q(s, a) - V(s), \qquad Q(s, a) \to R_h + \gamma^h m V(s')

    Paper: Park et al., https://arxiv.org/abs/2502.02538 (a baseline there), on implicit Q-learning,
    https://arxiv.org/abs/2110.06169

    :param policy: The policy model to use (FlowPolicy, CnnPolicy, MultiInputPolicy; MlpPolicy is FlowPolicy)
    :param env: The environment to learn from (if registered in Gym, can be str). Can be None as for QAM
    :param learning_rate: learning rate of the one optimizer for all networks,
        it can be a function of the current progress remaining (from 1 to 0)
    :param expectile: kappa in (0, 1), which expectile of the critics V is: 0.5 the mean, near 1 the largest
    :param best_of_n: How many actions of the behavior flow the best is taken of: that of the largest min_i Q_i
    :param flow_steps: Number of steps N from noise to action
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param kwargs: By name all that :class:`~sb3_qam.QAM` shares with other algorithms, with its defaults: the arguments
        of SB3's off-policy algorithms, ``n_steps``, ``chunk_size``, ``target_update_interval``, ``pessimism``,
        ``max_grad_norm`` (no clipping by default), those of offline data, ``reward_transform``, ``random_shift``
    :raises ValueError: if an argument is out of range, the action space is not a bounded Box, or the dataset is
        unusable or does not fit the environment
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "FlowPolicy": FlowPolicy,
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: FlowPolicy
    actor: VelocityField
    # What the policy acts by: setting it on the model reaches the policy
    best_of_n = PolicyArgument[int]()
    flow_steps = PolicyArgument[int]()

    def __init__(
        self,
        policy: str | type[FlowPolicy],
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 3e-4,
        *,
        expectile: float = 0.9,
        best_of_n: int = 32,
        flow_steps: int = 10,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(policy, env, learning_rate, **kwargs)
        self.expectile = expectile
        self.best_of_n = best_of_n
        self.flow_steps = flow_steps

        if _init_setup_model:
            self._setup_model()
            self._check_offline_dataset()

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        check_in_range("expectile", self.expectile, 0, 1, low_excluded=True, high_excluded=True)
        check_positive_int("best_of_n", self.best_of_n)
        check_positive_int("flow_steps", self.flow_steps)

    def _acting_kwargs(self) -> dict[str, Any]:
        # A clone alone has no critics that could choose
        best_of_n = 1 if self._objective == "bc" else self.best_of_n
        return {**super()._acting_kwargs(), "best_of_n": best_of_n, "flow_steps": self.flow_steps}

    def _create_aliases(self) -> None:
        super()._create_aliases()
        self.actor = self.policy.behavior_flow

    def _set_objective(self, objective: str) -> None:
        super()._set_objective(objective)
        self.policy.set_hyperparameter("best_of_n", self._acting_kwargs()["best_of_n"])

    def _sample_noise(self, batch_size: int) -> UpdateNoise:
        x0 = th.randn(batch_size, self.policy.action_dim, device=self.device)
        return UpdateNoise(x0, th.rand(batch_size, 1, device=self.device))

    def _update(self, batch: TransitionBatch, noise: UpdateNoise) -> None:
        # Value loss: of all samples, as in the published code, not only of valid ones
        values = self.policy.state_values(batch.observations)
        with th.no_grad():
            q_target = self.critic_target(self.critic_target.features(batch.observations), batch.actions)
        value_loss = expectile_loss(pessimistic_value(q_target, self.pessimism) - values, self.expectile)

        # Critic loss: every Q_i(s, a) is regressed on the TD target
        q_values = self.critic(self.critic.features(batch.observations), batch.actions)
        critic_loss = (batch.valid * (q_values - self.td_target(batch, noise)) ** 2).mean()

        # Behavior loss: conditional flow matching clones the data
        losses = {"value_loss": value_loss, "critic_loss": critic_loss, "bc_loss": self.bc_loss(batch, noise)}
        reported = {
            "v_mean": values.mean(),
            "q_mean": q_values.mean(),
            "q_std": q_values.std(dim=0, correction=0).mean(),
        }
        self._optimize(losses, reported, self.policy.target_pairs())

    def bc_loss(self, batch: TransitionBatch, noise: UpdateNoise) -> th.Tensor:
        velocity = self.policy.behavior_flow.conditioned_on(batch.observations)
        return flow_matching_loss(velocity, batch.actions, *noise, batch.valid)

    @th.no_grad()
    def td_target(self, batch: TransitionBatch, noise: UpdateNoise) -> th.Tensor:
        """
        y = R_h + gamma^h m V(s'), without an action of the policy.

        :param batch: A batch
        :param noise: Noise of its update, which the target needs none of
        :return: y, shape (batch,)
        """
        return batch.rewards + batch.discounts * batch.masks * self.policy.state_values(batch.next_observations)
