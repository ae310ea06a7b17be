"""Draws what ``inverse_temperature`` does to a policy of two modes: ``python docs/figures/temperature.py``."""

import os
import tempfile

import matplotlib.pyplot as plt
import minari
import numpy as np
import torch as th
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from two_modes import CLONE_COLOR, POLICY_COLOR, TwoModes, read_arguments, save

from sb3_qam import QAM

N_DATA = 20_000
TEMPERATURES = (0.0, 1.0, 3.0, 6.0)


def write_dataset(actions: np.ndarray, rewards: np.ndarray) -> minari.MinariDataset:
    """
    :param actions: shape (n,)
    :param rewards: What each of them gets, shape (n,)
    :return: A dataset with one observation, in which every step ends its episode
    """
    space = spaces.Box(-1.0, 1.0, (1,))
    steps = EpisodeBuffer(
        observations=np.zeros((len(actions) + 1, 1), np.float32),
        actions=list(actions.astype(np.float32)[:, None]),
        rewards=list(rewards),
        terminations=[True] * len(actions),
        truncations=[False] * len(actions),
    )
    return minari.create_dataset_from_buffers(
        "figures/two-modes-v0", [steps], observation_space=space, action_space=space
    )


def train(dataset: minari.MinariDataset, inverse_temperature: float, gradient_steps: int) -> np.ndarray:
    """
    :param dataset: What to learn from
    :param inverse_temperature: w
    :param gradient_steps: Number of updates
    :return: Actions of the trained policy, shape (20000,)
    """
    model = QAM(
        "FlowPolicy",
        env=None,
        offline_dataset=dataset,
        inverse_temperature=inverse_temperature,
        learning_rate=lambda remaining: 1e-2 * remaining,
        tau=0.02,
        # Steps of second order: what is seen is the policy, not its sampler
        flow_steps=10,
        policy_kwargs=dict(net_arch=[32, 32], ode_method="midpoint"),
        seed=0,
    )
    model.pretrain(gradient_steps=gradient_steps)
    return model.predict(np.zeros((20_000, 1), np.float32), deterministic=False)[0].ravel()


def main() -> None:
    """Train, and draw the picture."""
    arguments = read_arguments(__doc__)
    th.set_num_threads(1)
    modes = TwoModes((-0.4, 0.4), std=0.2)
    rng = np.random.default_rng(0)
    actions = np.clip(rng.choice(modes.means, N_DATA) + modes.std * rng.normal(size=N_DATA), -1, 1)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["MINARI_DATASETS_PATH"] = cache
        # The value is linear, Q(a) = 0.4 a, so that the right policy is known
        dataset = write_dataset(actions, 0.4 * actions)
        figure, axes = plt.subplots(1, len(TEMPERATURES), figsize=(14, 3.4), sharey=True, layout="constrained")
        grid = np.linspace(-1, 1, 400)
        for each, temperature in zip(axes, TEMPERATURES, strict=True):
            sample = train(dataset, temperature, 20 if arguments.quick else 3000)
            color = CLONE_COLOR if temperature == 0 else POLICY_COLOR
            each.hist(sample, bins=80, range=(-1, 1), density=True, color=color, label="trained policy")
            each.plot(grid, modes.tilted(0.4 * temperature).density(grid), color="black", label="exact")
            share = np.mean(sample > 0)
            each.set(xlabel="action", title=f"w = {temperature:g}: {share:.0%} in the better mode")
        axes[0].legend()
    save(figure, arguments.output / "temperature.png")


if __name__ == "__main__":
    main()
