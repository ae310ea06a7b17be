"""A behavior of two modes whose flow, and whose tilted policy's flow, are known in closed form."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch as th

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

IMAGES = Path(__file__).parents[1] / "images"
CLONE_COLOR, POLICY_COLOR = "0.6", "tab:orange"


@dataclass(frozen=True)
class TwoModes:
    """
    Actions from a mixture of two Gaussians of the same width, in one dimension.

    :param means: Means of the two
    :param weights: Their weights, which add up to 1
    :param std: Their standard deviation
    """

    means: tuple[float, float] = (-0.5, 0.5)
    weights: tuple[float, float] = (0.5, 0.5)
    std: float = 0.1

    def tilted(self, slope: float) -> "TwoModes":
        """
        :param slope: w times the slope of a value that is linear in the action, w Q(a) = slope * a
        :return: pi proportional to pi_beta exp(w Q): the modes move by std^2 slope, their weights by exp(slope mean)
        """
        weights = np.array(self.weights) * np.exp(slope * np.array(self.means))
        weights /= weights.sum()
        first, second = (mean + self.std**2 * slope for mean in self.means)
        return TwoModes((first, second), (float(weights[0]), float(weights[1])), self.std)

    def density(self, actions: np.ndarray) -> np.ndarray:
        """
        :param actions: shape (n,)
        :return: Their density, shape (n,)
        """
        z = (actions[:, None] - np.array(self.means)) / self.std
        return np.exp(-(z**2) / 2) @ np.array(self.weights) / (self.std * np.sqrt(2 * np.pi))

    def velocity(self, x: th.Tensor, t: float | th.Tensor) -> th.Tensor:
        """
        The exact velocity of the flow from N(0, 1) to the mixture, E[a - x0 | x_t = x] with x_t = (1 - t) x0 + t a.

        :param x: shape (..., 1)
        :param t: Flow time in [0, 1]
        :return: Same shape as ``x``
        """
        means, weights = th.tensor(self.means), th.tensor(self.weights)
        variance = (1 - t) ** 2 + (t * self.std) ** 2
        offset = x - t * means
        share = th.softmax(weights.log() - offset**2 / (2 * variance), dim=-1)
        expected = means + (t * self.std**2 - (1 - t)) / variance * offset
        return (share * expected).sum(dim=-1, keepdim=True)


def read_arguments(description: str) -> argparse.Namespace:
    """
    :param description: What the script draws
    :return: The options of all scripts: ``quick`` and ``output``, a folder
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="draw little, to see that the script runs")
    parser.add_argument("--output", type=Path, default=IMAGES, help="folder to write to")
    return parser.parse_args()


def save(figure: Figure, path: Path) -> None:
    """
    :param figure: What was drawn
    :param path: File to write
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same script gives the same file
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
    print(path)
