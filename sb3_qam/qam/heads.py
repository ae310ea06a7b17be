"""Action heads: what makes an action of noise and a flow, and how it is trained; one class for each variant.

All shapes are (..., batch, action_dim); the leading axis, where there is one, counts samples of the same observation.
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_qam.common.noise import Draw, SamplingNoise
from sb3_qam.networks.actors import EditPolicy, EntropyCoefficient, OneStepFlow

# Of the tanh-Gaussian of QAM-E, per dimension
TARGET_ENTROPY_PER_DIM = -0.5


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

    def draw_noise(self, draw: Draw, *shape: int) -> SamplingNoise:
        """
        :param draw: Draws standard normal numbers
        :param shape: (n_samples, batch, action_dim)
        :return: Noise for :meth:`forward`
        """
        return SamplingNoise(draw(*shape))

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
        :param noise: What :meth:`draw_noise` drew, for one sample
        :return: Losses of the head, and diagnostics
        """
        return HeadLosses({}, {})


class OneStepHead(FlowHead):
    r"""
    QAM-F: a one-step policy mu(s, z), distilled from the flow, that maximizes the critics' value (as in FQL, arXiv
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

    with the entropy coefficient :math:`\alpha` learned to keep the entropy of e at half a nat below zero per dimension.

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

    def draw_noise(self, draw: Draw, *shape: int) -> SamplingNoise:
        return SamplingNoise(draw(*shape), draw(*shape))

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
        entropy_coef = self.entropy_coef()
        entropy = -log_density.detach().mean()
        return HeadLosses(
            {
                "edit_q_loss": -q_value(actions).mean(),
                "edit_entropy_loss": (entropy_coef.detach() * log_density).mean(),
                "edit_alpha_loss": entropy_coef * (entropy - self.target_entropy),
            },
            {"edit_alpha": entropy_coef, "edit_entropy": entropy},
        )
