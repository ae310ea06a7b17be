"""What RL Zoo has written about a run."""

from pathlib import Path

import yaml
from rl_zoo3 import create_test_env, get_saved_hyperparams
from stable_baselines3.common.vec_env import VecEnv


def make_env_of_run(folder: Path, n_envs: int, seed: int) -> tuple[VecEnv, str]:
    """
    :param folder: Where the zoo has put the settings of a run: ``logs/ALGO/ENV_1/ENV``
    :param n_envs: Number of environments
    :param seed: Their seed
    :return: Environments as those of the run, wrapped and normalized, and their id
    """
    args = yaml.load((folder / "args.yml").read_text(), Loader=yaml.UnsafeLoader)
    hyperparams, stats_path = get_saved_hyperparams(str(folder))
    env_kwargs = args["env_kwargs"] or hyperparams.pop("env_kwargs", None)
    env = create_test_env(
        args["env"],
        n_envs,
        stats_path=stats_path,
        seed=seed,
        should_render=False,
        hyperparams=hyperparams,
        env_kwargs=env_kwargs,
    )
    return env, args["env"]
