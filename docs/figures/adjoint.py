"""Draws lean adjoints along paths, and what a regression on them gives: ``python docs/figures/adjoint.py``."""

import matplotlib.pyplot as plt
import numpy as np
import torch as th
from matplotlib.axes import Axes
from two_modes import POLICY_COLOR, TwoModes, read_arguments, save

from sb3_qam.qam.adjoint_matching import (
    flow_times,
    lean_adjoint,
    memoryless_path,
    memoryless_sigma,
    scalar_adjoint,
    terminal_adjoint,
)

FLOW_STEPS = 40
SLOPE = 2.0
N_DRAWN = 25


def draw_adjoints(axes: Axes, lean: th.Tensor, scalar: th.Tensor) -> None:
    """
    :param axes: Where to draw
    :param lean: g_0 ... g_N of each path, shape (N + 1, batch)
    :param scalar: The same without the velocity's Jacobian, shape (N + 1,)
    """
    times = np.linspace(0, 1, FLOW_STEPS + 1)
    axes.plot(times, lean[:, :N_DRAWN], color="tab:blue", linewidth=0.8, alpha=0.6)
    axes.plot([], [], color="tab:blue", label="lean, path by path")
    axes.plot(times, scalar, color="black", linestyle="--", label="scalar: $t_k\\, g_N$")
    axes.set(xlabel="flow time t", ylabel="adjoint g", title="carried back from $g_N = -w\\,\\nabla Q$ at t = 1")
    axes.legend()


def draw_regression(axes: Axes, x: th.Tensor, target: th.Tensor, exact: th.Tensor, time: float) -> None:
    """
    :param axes: Where to draw
    :param x: Where the paths are at that time, shape (batch,)
    :param target: What is regressed on there, shape (batch,)
    :param exact: The tilted policy's velocity minus the behavior's at the same places, shape (batch,)
    :param time: The flow time
    """
    axes.plot(x[:2000], target[:2000], ".", color="0.8", markersize=2)
    order = np.argsort(x)
    groups = np.array_split(order, max(1, len(x) // 4000))
    means = [(x[group].mean(), target[group].mean()) for group in groups]
    axes.plot(*np.array(means).T, "o", color=POLICY_COLOR, markersize=4, label="mean over neighbors")
    axes.plot(x[order], exact[order], color="black", linewidth=1, label="exact $v_\\theta - v_\\beta$")
    axes.plot([], [], "o", color="0.8", markersize=3, label="$-\\sigma_k^2\\, g_k / 2$ of each path")
    axes.set(xlabel="x", title=f"what the policy learns at t = {time:g}", ylim=(-0.3, 3 * exact.max()))
    axes.legend()


def main() -> None:
    """Draw the picture."""
    arguments = read_arguments(__doc__)
    n_paths = 200 if arguments.quick else 100_000
    th.manual_seed(0)
    behavior = TwoModes((-0.4, 0.4), std=0.2)
    policy = behavior.tilted(SLOPE)
    path = memoryless_path(policy.velocity, behavior.velocity, th.randn(n_paths, 1), th.randn(FLOW_STEPS, n_paths, 1))
    g_N = terminal_adjoint(lambda action: SLOPE * action[:, 0], path[-1], inverse_temperature=1.0)
    adjoints = lean_adjoint(behavior.velocity, path[:-1], g_N)
    sigma = memoryless_sigma(flow_times(FLOW_STEPS))

    figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    scalar = scalar_adjoint(flow_times(FLOW_STEPS), g_N)
    draw_adjoints(axes[0], th.cat([adjoints, g_N[None]])[..., 0], th.cat([scalar, g_N[None]])[:, 0, 0])
    for each, k in zip(axes[1:], (FLOW_STEPS // 2, FLOW_STEPS * 3 // 4), strict=True):
        x, t = path[k], k / FLOW_STEPS
        exact = policy.velocity(x, t) - behavior.velocity(x, t)
        target = -(sigma[k] ** 2) * adjoints[k] / 2
        draw_regression(each, x[:, 0], target[:, 0], exact[:, 0], t)
    save(figure, arguments.output / "adjoint.png")


if __name__ == "__main__":
    main()
