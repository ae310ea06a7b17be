"""Where RL Zoo's hyper-parameter search looks for the arguments of the algorithms."""

from contextvars import ContextVar
from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import convert_offpolicy_params, sample_her_params

# What RL Zoo draws for HerReplayBuffer
HER_PARAMS = ("n_sampled_goal", "goal_selection_strategy")
# Of the configuration of the search at work: a trial draws some of them, and keeps the others
configured_policy_kwargs = ContextVar[dict[str, Any]]("configured_policy_kwargs")


def convert_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: What a trial has drawn, as Optuna's storage has it
    :return: Arguments of the algorithm
    """
    hyperparams = convert_offpolicy_params(sampled_params)
    hyperparams["policy_kwargs"]["n_critics"] = hyperparams.pop("n_critics")
    if of_her := {name: hyperparams.pop(name) for name in HER_PARAMS if name in hyperparams}:
        hyperparams["replay_buffer_kwargs"] = of_her
    if hyperparams.get("chunk_size", 1) > 1:
        # Which the configuration's n_steps does not go with
        hyperparams["n_steps"] = 1
    return hyperparams


# Whether the coming search is for a few CPU cores: trials in minutes, and not in hours
for_small_machines = False


def sample_params(
    ranges: dict[str, tuple[float, float]],
    trial: optuna.Trial,
    n_actions: int,
    n_envs: int,
    additional_args: dict[str, Any],
) -> dict[str, Any]:
    """
    Draw the arguments of a trial. RL Zoo gives all but the first.

    :param ranges: Ends of the ranges, on a logarithmic scale, of arguments besides those that all variants share
    :param trial: Draws
    :param n_actions: Dimension of the actions
    :param n_envs: Number of environments
    :param additional_args: Whether there is a ``HerReplayBuffer``, and its arguments
    :return: Arguments of the algorithm
    """
    hyperparams: dict[str, Any] = {
        name: trial.suggest_float(name, low, high, log=True) for name, (low, high) in ranges.items()
    }
    hyperparams |= {
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.001, 0.03, log=True),
        # From 2**6=64 to 2**10=1024, or 2**8=256
        "batch_size_pow": trial.suggest_int("batch_size_pow", 6, 8 if for_small_machines else 10),
        "learning_rate": trial.suggest_float("learning_rate", 3e-5, 0.002, log=True),
        "tau": trial.suggest_float("tau", 0.001, 0.02, log=True),
        "pessimism": trial.suggest_float("pessimism", 0.0, 1.0),
        "net_arch": trial.suggest_categorical(
            "net_arch", ["small", "medium"] if for_small_machines else ["medium", "large", "verybig"]
        ),
        "n_critics": trial.suggest_categorical("n_critics", [2] if for_small_machines else [2, 5, 10]),
    }
    # Display true values
    trial.set_user_attr("gamma", 1 - hyperparams["one_minus_gamma"])
    trial.set_user_attr("batch_size", 2 ** hyperparams["batch_size_pow"])
    if additional_args["using_her_replay_buffer"]:
        # It relabels single transitions: no chunks
        hyperparams = sample_her_params(trial, hyperparams, additional_args["her_kwargs"])
    else:
        hyperparams["chunk_size"] = trial.suggest_categorical("chunk_size", [1, 5])
    hyperparams = convert_params(hyperparams)
    hyperparams["policy_kwargs"] = {**configured_policy_kwargs.get({}), **hyperparams["policy_kwargs"]}
    return hyperparams
