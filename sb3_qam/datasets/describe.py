"""What is in a dataset, before anything is trained on it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_qam.datasets.checks import checked
from sb3_qam.datasets.minari import check_dataset_spaces, scale_actions, training_spaces
from sb3_qam.datasets.rewards import SUCCESS_KEYS
from sb3_qam.datasets.sources import OfflineDataset, episodes_of, open_datasets

# The discount of a first run reaches over an episode, within the range that most published runs have. The episodes of
# OGBench's data are longer than its tasks
GAMMAS = (0.99, 0.995)
# Inverse temperature times standard deviation of the values, for a first run: between 3, which worked in the
# quickstart's maze, and 30, which did harm (the guide's page on tuning)
START_SPREAD = 10.0
# Scaled actions beyond this are at the bounds
SATURATED = 0.99
N_BINS = 40


@dataclass
class DatasetDescription:
    """
    Statistics of a dataset. ``print()`` shows them, :meth:`draw` draws them.

    :param name: The datasets' ids
    :param env_id: Id of the environment it was recorded in, if it knows
    :param observation_space: Observation space of the policy
    :param action_space: Action space
    :param lengths: Number of steps of each episode, shape (E,)
    :param returns: Undiscounted sum of the rewards of each episode, shape (E,)
    :param successes: Whether each episode succeeded, shape (E,), or ``None`` where infos do not say so
    :param n_terminations: Number of steps with a termination
    :param reward_range: The smallest and the largest reward
    :param n_distinct_rewards: Number of distinct rewards
    :param saturation: Share of the steps in which each action is at its bounds, shape (action_dim,)
    :param action_counts: Histogram of each scaled action over [-1, 1], shape (action_dim, bins)
    :param gamma: A discount factor to begin with: it reaches over a median episode, up to its end or a termination
    :param value_std: Standard deviation of the discounted returns of all steps, with that factor
    """

    name: str
    env_id: str | None
    observation_space: spaces.Space
    action_space: spaces.Box
    lengths: np.ndarray
    returns: np.ndarray
    successes: np.ndarray | None
    n_terminations: int
    reward_range: tuple[float, float]
    n_distinct_rewards: int
    saturation: np.ndarray
    action_counts: np.ndarray = field(repr=False)
    gamma: float
    value_std: float

    @property
    def inverse_temperature(self) -> float | None:
        """An inverse temperature to begin with, of one digit; ``None`` if all steps have the same return."""
        return float(f"{START_SPREAD / self.value_std:.0e}") if self.value_std > 0 else None

    def __str__(self) -> str:
        rewards = f"{self.reward_range[0]:g} to {self.reward_range[1]:g}"
        if self.n_distinct_rewards <= 2:
            rewards += f" ({self.n_distinct_rewards} distinct values)"
        rows = {
            "dataset": self.name,
            "environment": self.env_id or "not known",
            "episodes": len(self.lengths),
            "steps": self.lengths.sum(),
            "episode length": _distribution(self.lengths),
            "return": _distribution(self.returns),
            "discounted returns": f"standard deviation {self.value_std:.3g} over all steps, with gamma={self.gamma:g}",
            "rewards": rewards,
            "success": "not recorded" if self.successes is None else f"{self.successes.mean():.1%} of the episodes",
            "terminations": f"{self.n_terminations} steps",
            "actions at their bounds": ", ".join(f"{share:.1%}" for share in self.saturation),
            "observations": self.observation_space,
            "actions": self.action_space,
            "to begin with": self._start(),
        }
        width = max(map(len, rows))
        return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())

    def _start(self) -> str:
        if self.inverse_temperature is None:
            return f"gamma={self.gamma:g}; all returns are the same: BC is all that this data can teach"
        start = f"{self.inverse_temperature:g}"
        return (
            f"gamma={self.gamma:g}, and inverse_temperature={start}, or "
            f"kl_budget=1.0 with reward_transform={{'scale': {start}}}"
        )

    def draw(self, path: str | Path) -> None:
        """
        Draw histograms of returns, lengths and actions.

        :param path: Where to write the picture
        :raises ImportError: if matplotlib is not installed
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 3.4), layout="constrained")
        axes: Any = figure.subplots(1, 3)
        axes[0].hist(self.returns, bins=N_BINS)
        axes[0].set(xlabel="return", ylabel="episodes", title=self.name)
        axes[1].hist(self.lengths, bins=N_BINS)
        axes[1].set(xlabel="episode length", ylabel="episodes")
        edges = np.linspace(-1, 1, N_BINS + 1)
        for number, counts in enumerate(self.action_counts):
            axes[2].stairs(counts / counts.sum(), edges, label=f"action {number}")
        axes[2].set(xlabel="action, scaled to [-1, 1]", ylabel="share of the steps")
        if len(self.action_counts) <= 8:
            axes[2].legend(fontsize=8)
        figure.savefig(path, dpi=110)


def _distribution(values: np.ndarray) -> str:
    low, median, high = np.quantile(values, [0.1, 0.5, 0.9])
    return (
        f"mean {values.mean():.4g}, standard deviation {values.std():.4g}, "
        f"from {values.min():.4g} to {values.max():.4g} (10%: {low:.4g}, median {median:.4g}, 90%: {high:.4g})"
    )


def _discounted(rewards: np.ndarray, terminations: np.ndarray, gamma: float) -> np.ndarray:
    """:return: Discounted return of each step until a termination or the end, shape (T,)"""
    returns = np.zeros(len(rewards) + 1)
    for step in reversed(range(len(rewards))):
        returns[step] = rewards[step] + gamma * returns[step + 1] * (not terminations[step])
    return returns[:-1]


def describe(source: OfflineDataset) -> DatasetDescription:
    """
    Go through a dataset once, episode by episode.

    :param source: As ``offline_dataset`` of :class:`sb3_qam.QAM`
    :return: Its statistics
    :raises ValueError: if SB3 or QAM does not support the spaces, those of several datasets differ, a file cannot be
        read, or a key is missing, of another length or type than it should be, or not finite
    :raises FileNotFoundError: if there is no such dataset
    """
    datasets = open_datasets(source)
    observation_space, action_space = training_spaces(datasets[0])
    rewards, terminations, actions = [], [], []
    successes: list[bool] = []
    knows_success = True
    for dataset in datasets:
        check_dataset_spaces(dataset, observation_space, action_space)
        reports_success = False
        for place, episode in episodes_of(dataset):
            # As training reads them, and not rounded
            checked(episode.rewards, (place.n_steps,), np.float32, place._replace(key="rewards"))
            rewards.append(np.asarray(episode.rewards, np.float64).reshape(place.n_steps))
            scaled = scale_actions(episode.actions, action_space, place)
            actions.append(scaled.reshape(place.n_steps, -1).astype(np.float32))
            flags = checked(episode.terminations, (place.n_steps,), np.bool_, place._replace(key="terminations"))
            terminations.append(flags)
            key = next((key for key in SUCCESS_KEYS if key in (episode.infos or {})), None)
            # Some environments report success only when it happens
            successes.append(key is not None and bool(np.any(episode.infos[key])))
            reports_success |= key is not None
        knows_success &= reports_success
    all_rewards, all_actions = np.concatenate(rewards), np.concatenate(actions)
    # An episode may contain several ways to a termination
    horizons = [len(r) / max(t.sum(), 1) for r, t in zip(rewards, terminations, strict=True)]
    gamma = float(np.clip(1 - 1 / np.median(horizons), *GAMMAS).round(3))
    values = [_discounted(r, t, gamma) for r, t in zip(rewards, terminations, strict=True)]
    spec = datasets[0].env_spec
    return DatasetDescription(
        name=", ".join(dataset.id for dataset in datasets),
        env_id=None if spec is None else spec.id,
        observation_space=observation_space,
        action_space=action_space,
        lengths=np.array([len(of_episode) for of_episode in rewards]),
        returns=np.array([of_episode.sum() for of_episode in rewards]),
        successes=np.array(successes) if knows_success else None,
        n_terminations=sum(int(of_episode.sum()) for of_episode in terminations),
        reward_range=(float(all_rewards.min()), float(all_rewards.max())),
        n_distinct_rewards=len(np.unique(all_rewards)),
        saturation=(np.abs(all_actions) > SATURATED).mean(axis=0),
        action_counts=np.array([np.histogram(each.clip(-1, 1), N_BINS, (-1, 1))[0] for each in all_actions.T]),
        gamma=gamma,
        value_std=float(np.concatenate(values).std()),
    )
