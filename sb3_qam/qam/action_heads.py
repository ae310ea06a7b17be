"""What makes an action of noise and a flow, and how it is trained: one object for each variant.

All shapes are (..., batch, action_dim); the leading axis, where there is one, counts samples of the same observation.
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_qam.networks.networks import EditPolicy, EntropyCoefficient, OneStepFlow

# Of the tanh-Gaussian of QAM-E, per dimension
TARGET_ENTROPY_PER_DIM = -0.5


class SamplingNoise(NamedTuple):
    """
    What one action is made from.

    :param x0: Standard normal, where the flow starts
    :param edit: Standard normal, under the tanh of an edit; ``None`` for heads that do not edit
    """

    x0: th.Tensor
    edit: th.Tensor | None = None


class HeadLosses(NamedTuple):
    """
    What the training of a head reports.

    :param losses: Scalars to add to the loss, by name
    :param diagnostics: Other scalars for the log, by name
    """

    losses: dict[str, th.Tensor]
    diagnostics: dict[str, th.Tensor]


# ``flow(x0)``: the clipped end of the policy flow, without gradient
Flow = Callable[[th.Tensor], th.Tensor]
# ``q_value(actions)``: one value each, the gradient reaching the actions alone
QValue = Callable[[th.Tensor], th.Tensor]


class FlowHead(nn.Module):
    """Plain QAM: the action is where the flow ends."""

    # Whether there are losses
    learns: ClassVar[bool] = False

    def draw_noise(self, *shape: int, device: th.device) -> SamplingNoise:
        """
        :param shape: Shape of the actions
        :param device: Device of the networks
        :return: Noise for :meth:`forward`
        """
        return SamplingNoise(th.randn(*shape, device=device))

    def fixed_noise(self, x0: th.Tensor) -> SamplingNoise:
        """
        :param x0: Where the flow starts
        :return: Noise for actions that are to be a function of the observation and ``x0``
        """
        return SamplingNoise(x0)

    def draw_training_noise(self, *shape: int, device: th.device) -> SamplingNoise | None:
        """
        :param shape: Shape of the actions
        :param device: Device of the networks
        :return: Noise for :meth:`losses`, if there are any
        """
        return self.draw_noise(*shape, device=device) if self.learns else None

    def forward(self, observations: PyTorchObs, flow: Flow, noise: SamplingNoise) -> th.Tensor:
        """
        :param observations: A batch of observations
        :param flow: The flow, these observations given
        :param noise: Noise
        :return: Actions in [-1, 1]
        """
        return flow(noise.x0)

    def losses(self, observations: PyTorchObs, flow: Flow, q_value: QValue, noise: SamplingNoise | None) -> HeadLosses:
        """
        :param observations: A batch of observations
        :param flow: The flow, these observations given
        :param q_value: Mean of the online critics, these observations given
        :param noise: What :meth:`draw_training_noise` drew
        :return: Losses of what stands behind the flow, and diagnostics
        """
        return HeadLosses({}, {})


class OneStepHead(FlowHead):
    r"""
    QAM-F: a one-step policy mu(s, z) that is distilled from the flow and climbs the critic (as in FQL, arXiv
    2502.02538),

    .. math::
        \alpha\, E\, \mathrm{mean}_{dims} (ODE_\theta(s, z) - \mu(s, z))^2 - E\, Q(s, \mathrm{clip}\, \mu(s, z))

    :param one_step_flow: mu
    :param distill_coef: alpha
    """

    learns = True

    def __init__(self, one_step_flow: OneStepFlow, distill_coef: float) -> None:
        super().__init__()
        self.one_step_flow = one_step_flow
        self.distill_coef = distill_coef

    def forward(self, observations: PyTorchObs, flow: Flow, noise: SamplingNoise) -> th.Tensor:
        return self.one_step_flow(self.one_step_flow.features(observations), noise.x0).clamp(-1, 1)

    def losses(self, observations: PyTorchObs, flow: Flow, q_value: QValue, noise: SamplingNoise | None) -> HeadLosses:
        assert noise is not None  # for mypy
        actions = self.one_step_flow(self.one_step_flow.features(observations), noise.x0)
        distill_loss = ((flow(noise.x0) - actions) ** 2).mean()
        q_loss = -q_value(actions.clamp(-1, 1)).mean()
        return HeadLosses(
            {"fql_loss": self.distill_coef * distill_loss + q_loss},
            {"fql_distill_loss": distill_loss, "fql_q_loss": q_loss},
        )


class EditHead(FlowHead):
    r"""
    QAM-E: a tanh-Gaussian e(s, a) changes the flow's action by at most c,

    .. math:: a = \mathrm{clip}(a_{flow} + c\, e), \qquad E[-Q(s, a) + \alpha \log \pi_e]

    with the temperature :math:`\alpha` learned to keep the entropy of e at half a nat below zero per dimension.

    :param edit_policy: e
    :param action_dim: Number of action dimensions
    :param edit_scale: c
    """

    learns = True

    def __init__(self, edit_policy: EditPolicy, action_dim: int, edit_scale: float) -> None:
        super().__init__()
        self.edit_policy = edit_policy
        self.entropy_coef = EntropyCoefficient()
        self.edit_scale = edit_scale
        self.target_entropy = TARGET_ENTROPY_PER_DIM * action_dim

    def draw_noise(self, *shape: int, device: th.device) -> SamplingNoise:
        return SamplingNoise(th.randn(*shape, device=device), th.randn(*shape, device=device))

    def fixed_noise(self, x0: th.Tensor) -> SamplingNoise:
        # The median edit, as SAC's deterministic action
        return SamplingNoise(x0, th.zeros_like(x0))

    def _edited(self, observations: PyTorchObs, flow: Flow, noise: SamplingNoise) -> tuple[th.Tensor, th.Tensor]:
        assert noise.edit is not None  # for mypy
        flow_actions = flow(noise.x0)
        edits, log_density = self.edit_policy(self.edit_policy.features(observations), flow_actions, noise.edit)
        return (flow_actions + self.edit_scale * edits).clamp(-1, 1), log_density

    def forward(self, observations: PyTorchObs, flow: Flow, noise: SamplingNoise) -> th.Tensor:
        return self._edited(observations, flow, noise)[0]

    def losses(self, observations: PyTorchObs, flow: Flow, q_value: QValue, noise: SamplingNoise | None) -> HeadLosses:
        assert noise is not None  # for mypy
        actions, log_density = self._edited(observations, flow, noise)
        temperature = self.entropy_coef()
        entropy = -log_density.detach().mean()
        return HeadLosses(
            {
                "edit_q_loss": -q_value(actions).mean(),
                "edit_entropy_loss": (temperature.detach() * log_density).mean(),
                "edit_alpha_loss": temperature * (entropy - self.target_entropy),
            },
            {"edit_alpha": temperature, "edit_entropy": entropy},
        )
