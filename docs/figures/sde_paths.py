"""Draws how a flow and its memoryless SDE carry noise to actions: ``python docs/figures/sde_paths.py``."""

import matplotlib.pyplot as plt
import numpy as np
import torch as th
from matplotlib.axes import Axes
from two_modes import CLONE_COLOR, POLICY_COLOR, TwoModes, read_arguments, save

from sb3_qam.networks.flows import Velocity
from sb3_qam.qam.adjoint_matching import memoryless_path

FLOW_STEPS = 40
SLOPE = 2.0
N_DRAWN = 40


def ode_path(velocity: Velocity, x0: th.Tensor) -> th.Tensor:
    """
    :param velocity: The velocity of a flow
    :param x0: Noise, shape (batch, 1)
    :return: Every Euler step, shape (N + 1, batch, 1)
    """
    path = [x0]
    for k in range(FLOW_STEPS):
        path.append(path[-1] + velocity(path[-1], k / FLOW_STEPS) / FLOW_STEPS)
    return th.stack(path)


def draw(axes: Axes, path: th.Tensor, modes: TwoModes, color: str, title: str) -> None:
    """
    :param axes: Where to draw
    :param path: shape (N + 1, batch, 1)
    :param modes: What its end should be distributed as
    :param color: Of the paths
    :param title: What it is
    """
    times = np.linspace(0, 1, len(path))
    axes.plot(times, path[:, :N_DRAWN, 0], color=color, linewidth=0.8, alpha=0.6)
    density, edges = np.histogram(path[-1, :, 0], bins=80, range=(-1, 1), density=True)
    axes.barh((edges[:-1] + edges[1:]) / 2, density / 12, height=edges[1] - edges[0], left=1.0, color=color)
    actions = np.linspace(-1, 1, 400)
    axes.plot(1 + modes.density(actions) / 12, actions, color="black", linewidth=1)
    axes.axvline(1, color="black", linewidth=0.5)
    axes.set(xlim=(0, 1.4), ylim=(-2.5, 2.5), xticks=[0, 0.5, 1], xlabel="flow time t", title=title)


def main() -> None:
    """Draw the picture."""
    arguments = read_arguments(__doc__)
    n_paths = 100 if arguments.quick else 10_000
    th.manual_seed(0)
    behavior = TwoModes()
    policy = behavior.tilted(SLOPE)
    x0, noise = th.randn(n_paths, 1), th.randn(FLOW_STEPS, n_paths, 1)

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), sharey=True, layout="constrained")
    draw(axes[0], ode_path(behavior.velocity, x0), behavior, CLONE_COLOR, "flow of the behavior")
    path = memoryless_path(behavior.velocity, behavior.velocity, x0, noise)
    draw(axes[1], path, behavior, CLONE_COLOR, "memoryless SDE of the behavior")
    path = memoryless_path(policy.velocity, behavior.velocity, x0, noise)
    draw(axes[2], path, policy, POLICY_COLOR, f"memoryless SDE of the policy, w Q(a) = {SLOPE:g} a")
    axes[0].set_ylabel("x: noise on the left, actions on the right")
    save(figure, arguments.output / "sde_paths.png")


if __name__ == "__main__":
    main()
