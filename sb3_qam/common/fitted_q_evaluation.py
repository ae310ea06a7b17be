"""The value of a policy from data alone."""

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.utils import get_parameters_by_name, polyak_update

from sb3_qam.common.buffers import OfflineBuffer
from sb3_qam.common.evaluation import evaluation_mode
from sb3_qam.common.offline_to_online import OfflineToOnlineAlgorithm
from sb3_qam.datasets.sources import OfflineDataset
from sb3_qam.networks.critics import CriticEnsemble
from sb3_qam.utils.checks import check_positive_int
from sb3_qam.utils.random_state import preserved_rng

# The policy is fixed, so that targets may follow faster than in training
LEARNING_RATE, TAU = 1e-3, 0.05
# Actions that a stochastic policy draws in each start state
N_DRAWS = 32
# Start states that are evaluated together
N_TOGETHER = 1024
N_RESAMPLES, COVERAGE = 1000, 0.95


@dataclass(frozen=True)
class PolicyValue:
    """
    An estimated value, in the units of the rewards that the model learns from: transformed, discounted, and normalized
    where ``VecNormalize`` normalizes them.

    :param value: Mean over the start states and over the critics
    :param low: Lower end of its 95% interval
    :param high: Upper end
    :param halfway: The value after half of the gradient steps. If it has moved far since, there were too few of them
    """

    value: float
    low: float
    high: float
    halfway: float

    def __str__(self) -> str:
        interval = f"95%: {self.low:.4g} to {self.high:.4g}"
        return f"{self.value:.4g} ({interval}; after half of the gradient steps: {self.halfway:.4g})"


def fitted_q_evaluation(
    model: OfflineToOnlineAlgorithm,
    dataset: OfflineDataset | OfflineBuffer,
    gradient_steps: int = 10_000,
    deterministic: bool = True,
    n_steps: int = 1,
    n_critics: int = 5,
    seed: int = 0,
) -> PolicyValue:
    r"""
    Estimate what a policy is worth without running it: fitted Q evaluation (Le et al. 2019,
    https://arxiv.org/abs/1903.08738). New critics, of the kind that the model has, are regressed on

    .. math:: y_i = R_h + \gamma^h m \bar Q_i(s', a'), \quad a' \sim \pi(s')

    where h is the model's ``chunk_size``, or else ``n_steps``, and the rewards are transformed and the observations
    normalized as in its training. The result is the mean of Q(s, a) over the first states of the episodes.

    Each critic has a target of its own, and its own bootstrap sample of the episodes (Hao et al. 2021,
    https://arxiv.org/abs/2102.03607). The interval is that of resampling critics and start states. It covers which
    episodes were recorded and how the networks were initialized. It does not cover what all critics get wrong
    together: values of actions that are not in the data, and too few gradient steps.

    The model and the random numbers of its training stay as they are.

    :param model: The model
    :param dataset: As ``offline_dataset`` of the model; the more of what the policy does is in it, the better. Or what
        ``make_offline_buffer()`` made of it
    :param gradient_steps: Number of updates, each on ``batch_size`` transitions
    :param deterministic: Whether to evaluate deterministic or stochastic actions, as ``evaluate_policy`` has it
    :param n_steps: Number of steps of the returns of a model without chunks. With 1, all actions are valued as the
        policy's own; with more, rewards reach the start states in fewer gradient steps, but all actions of a return
        after the first are those of the data. The last h - 1 steps of an episode begin no return
    :param n_critics: Number of critics
    :param seed: Seed of its own random numbers
    :return: The value, with an interval
    :raises ValueError: if an argument is out of range, or the dataset is unusable or does not fit the model
    :raises FileNotFoundError: if the dataset is neither in the local Minari cache nor to be downloaded
    :raises FloatingPointError: if the critics diverge
    :raises TypeError: if the model or the dataset is not one
    """
    if not isinstance(model, OfflineToOnlineAlgorithm):
        raise TypeError(
            "fitted_q_evaluation(model, dataset) takes a model of this package, not its policy or its path, got "
            f"{type(model).__name__}."
        )
    if not isinstance(deterministic, bool):
        raise ValueError(f"deterministic must be True or False, got {deterministic!r}.")
    for name, number in {"gradient_steps": gradient_steps, "n_steps": n_steps, "n_critics": n_critics}.items():
        check_positive_int(name, number)
    check_positive_int("seed", seed, minimum=0)
    # A copy, which shares the data
    buffer = copy(dataset) if isinstance(dataset, OfflineBuffer) else model.make_offline_buffer(dataset)
    if buffer.chunk_size != model.chunk_size:
        raise ValueError(
            f"The data is in chunks of {buffer.chunk_size}, and the model's chunk_size is {model.chunk_size}: use "
            "model.make_offline_buffer(dataset)."
        )
    buffer.n_steps = model.chunk_size if model.chunk_size > 1 else n_steps
    # Which may have been changed since the data was read
    buffer.gamma = model.gamma
    if len(buffer.complete_starts()) == 0:
        raise ValueError(f"No episode of dataset '{buffer.name}' has the {n_steps} steps of a return: reduce n_steps.")
    with evaluation_mode(model, seed):
        halfway, values = (
            _values_at_starts(model, buffer, critic, deterministic)
            for critic in _fit(model, buffer, gradient_steps, deterministic, n_critics)
        )
    if not np.isfinite(values).all():
        raise FloatingPointError(
            f"The critics of fitted Q evaluation diverged within {gradient_steps} gradient steps: check the scale of "
            "the rewards, or lower gamma."
        )
    rng = np.random.default_rng(seed)
    means = [values[np.ix_(*(rng.integers(n, size=n) for n in values.shape))].mean() for _ in range(N_RESAMPLES)]
    low, high = np.quantile(means, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return PolicyValue(float(values.mean()), float(low), float(high), float(halfway.mean()))


def _fit(
    model: OfflineToOnlineAlgorithm, buffer: OfflineBuffer, gradient_steps: int, deterministic: bool, n_critics: int
) -> Iterator[CriticEnsemble]:
    """:return: Critics of the model's policy, as it acts now, after half of the gradient steps and after all"""
    policy: Any = model.policy
    critic, target = (policy.make_critic(n_critics=n_critics).train(mode) for mode in (True, False))
    target.load_state_dict(critic.state_dict())
    optimizer = th.optim.Adam(critic.parameters(), lr=LEARNING_RATE, fused=True)
    statistics, target_statistics = (get_parameters_by_name(each, ["running_"]) for each in (critic, target))
    # How often each critic has drawn each episode
    n_episodes = buffer.n_episodes
    drawn = np.stack(
        [np.bincount(np.random.randint(n_episodes, size=n_episodes), minlength=n_episodes) for _ in range(n_critics)]
    )
    rows = buffer.complete_starts()
    for step in range(gradient_steps):
        if step == gradient_steps // 2:
            with preserved_rng(model.action_space, model.device):
                yield critic.eval()
            critic.train()
        batch_inds = np.random.choice(rows, model.batch_size)
        weights = th.as_tensor(drawn[:, np.searchsorted(buffer.last, batch_inds)], device=model.device)
        batch = buffer.batch_of(batch_inds, env=model._vec_normalize_env)
        with th.no_grad():
            next_actions = policy._predict(batch.next_observations, deterministic=deterministic)
            next_values = target(target.features(batch.next_observations), next_actions)
            targets = batch.rewards + batch.discounts * batch.masks * next_values
        loss = (weights * (critic(critic.features(batch.observations), batch.actions) - targets) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        polyak_update(critic.parameters(), target.parameters(), TAU)
        polyak_update(statistics, target_statistics, 1.0)
    yield critic.eval()


@th.no_grad()
def _values_at_starts(
    model: OfflineToOnlineAlgorithm, buffer: OfflineBuffer, critic: CriticEnsemble, deterministic: bool
) -> np.ndarray:
    """:return: What each critic expects in the first state of each episode, shape (n_critics, n_episodes)"""
    starts = np.append(0, buffer.last[:-1] + 1)
    values = []
    for first in range(0, len(starts), N_TOGETHER):
        batch = buffer.batch_of(starts[first : first + N_TOGETHER], env=model._vec_normalize_env)
        features = critic.features(batch.observations)
        draws = [
            critic(features, model.policy._predict(batch.observations, deterministic=deterministic))
            for _ in range(1 if deterministic else N_DRAWS)
        ]
        values.append(th.stack(draws).mean(dim=0).cpu().numpy())
    return np.concatenate(values, axis=1)
