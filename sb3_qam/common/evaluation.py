"""What a policy achieves."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_qam.datasets.rewards import SUCCESS_KEYS
from sb3_qam.utils.random_state import forked_rng


@contextmanager
def evaluation_mode(model: BaseAlgorithm, seed: int) -> Iterator[None]:
    """
    Inside, the policy is in evaluation mode and random numbers are the caller's own. Afterwards every module is in the
    mode it was in, and the generators are where they were.

    :param model: The model
    :param seed: Seed of the numbers inside
    """
    modes = [(module, module.training) for module in model.policy.modules()]
    with forked_rng(seed, model.action_space, model.device):
        model.policy.set_training_mode(False)
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


@dataclass(frozen=True)
class Evaluation:
    """
    One number for each episode.

    :param returns: Sums of the environment's rewards
    :param lengths: Numbers of steps
    :param successes: Whether infos said at any step that it was a success; ``None`` if they never say
    """

    returns: list[float]
    lengths: list[int]
    successes: list[bool] | None

    def summary(self) -> dict[str, float | None]:
        """:return: Means, and the standard deviation of the returns"""
        return {
            "episodes": len(self.returns),
            "mean_return": float(np.mean(self.returns)),
            "std_return": float(np.std(self.returns)),
            "mean_length": float(np.mean(self.lengths)),
            "success": None if self.successes is None else float(np.mean(self.successes)),
        }


def evaluate(model: BaseAlgorithm, env: VecEnv, n_episodes: int, deterministic: bool = True) -> Evaluation:
    """
    :param model: The model
    :param env: Environments with the model's spaces
    :param n_episodes: Number of episodes, shared among the environments
    :param deterministic: Whether to use deterministic or stochastic actions
    :return: What was achieved
    """
    succeeded: list[bool | None] = [None] * env.num_envs
    successes: list[bool | None] = []

    def note(locals_: dict[str, Any], _: dict[str, Any]) -> None:
        number, info = locals_["i"], locals_["info"]
        said = [bool(info[key]) for key in SUCCESS_KEYS if key in info]
        if said:
            succeeded[number] = bool(succeeded[number]) or any(said)
        if locals_["done"]:
            successes.append(succeeded[number])
            succeeded[number] = None

    returns, lengths = evaluate_policy(
        model,
        env,
        n_episodes,
        deterministic=deterministic,
        callback=note,
        return_episode_rewards=True,
        # Without a Monitor the returns are those of the environment as it is
        warn=False,
    )
    assert isinstance(returns, list)  # for mypy
    assert isinstance(lengths, list)
    # Some environments speak of success only when it happens
    never_said = all(success is None for success in successes)
    return Evaluation(returns, lengths, None if never_said else [bool(success) for success in successes])
