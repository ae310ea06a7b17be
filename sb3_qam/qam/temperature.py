"""What decides how far the policy moves from the behavior: a fixed inverse temperature, or a budget for the divergence.

The budget is that of TRQAM, arXiv 2605.27079.
"""

import torch as th

# As in the published TRQAM
LAMBDA_SCALE = 3.0
LAMBDA_RANGE = (0.01, 100.0)
LAMBDA_STEP = 0.01
KL_AVERAGE_RATE = 0.1
# A single KL counts as no more than this many budgets
KL_CLIP = 2.0


class FixedTemperature:
    """No trust region: the inverse temperature alone decides."""

    def reset(self) -> None:
        """Nothing has been learned."""

    def scale_sigma(self, sigma: th.Tensor) -> th.Tensor:
        """
        :param sigma: Noise levels of the path, shape (N, 1, 1)
        :return: The same
        """
        return sigma

    def update(self, path_kl: th.Tensor) -> None:
        """:param path_kl: KL divergence between the paths of policy and behavior, which does not matter here"""

    def diagnostics(self) -> dict[str, th.Tensor]:
        """:return: Nothing for the log"""
        return {}


class TrustRegion:
    r"""
    The dual variable :math:`\lambda` of a KL budget :math:`\epsilon`: sigma is divided by
    :math:`\sqrt{3 \lambda}` in the matching loss, and after each update, D being the running mean of the KL,

    .. math::
        D &\leftarrow 0.9 D + 0.1 \min(KL, 2 \epsilon) \\
        \lambda &\leftarrow \mathrm{clip}(\lambda + 0.01 (D - \epsilon), 0.01, 100)

    All of it stays on the device.

    :param kl_budget: The budget, in nats per step of the environment
    :param kl_lambda: lambda, changed in place, shape ()
    :param kl_average: D, changed in place, shape ()
    """

    def __init__(self, kl_budget: float, kl_lambda: th.Tensor, kl_average: th.Tensor) -> None:
        self.kl_budget = kl_budget
        self.kl_lambda = kl_lambda
        self.kl_average = kl_average

    def reset(self) -> None:
        """Start again with lambda = 1 and no divergence so far."""
        self.kl_lambda.fill_(1)
        self.kl_average.fill_(0)

    def scale_sigma(self, sigma: th.Tensor) -> th.Tensor:
        """
        :param sigma: Noise levels of the path, shape (N, 1, 1)
        :return: What the matching loss takes for them
        """
        return sigma / (LAMBDA_SCALE * self.kl_lambda).sqrt()

    def update(self, path_kl: th.Tensor) -> None:
        """:param path_kl: KL divergence between the paths of policy and behavior, in nats per step, shape ()"""
        clipped = path_kl.detach().clamp(max=KL_CLIP * self.kl_budget)
        # In place: a CUDA graph looks for them where they were
        self.kl_average.mul_(1 - KL_AVERAGE_RATE).add_(KL_AVERAGE_RATE * clipped)
        self.kl_lambda.add_(LAMBDA_STEP * (self.kl_average - self.kl_budget)).clamp_(*LAMBDA_RANGE)

    def diagnostics(self) -> dict[str, th.Tensor]:
        """:return: Scalars for the log"""
        return {"kl_lambda": self.kl_lambda.clone(), "kl_average": self.kl_average.clone()}
