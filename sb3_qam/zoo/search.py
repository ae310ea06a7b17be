"""Where RL Zoo's hyper-parameter search looks for QAM's arguments."""

from collections.abc import Callable
from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import convert_offpolicy_params, sample_her_params

Sampler = Callable[..., dict[str, Any]]


def convert_qam_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: What a trial has drawn, as Optuna's storage has it
    :return: Arguments of QAM
    """
    hyperparams = convert_offpolicy_params(sampled_params)
    hyperparams["policy_kwargs"]["n_critics"] = hyperparams.pop("n_critics")
    if hyperparams.get("chunk_size", 1) > 1:
        # Which the configuration's n_steps does not go with
        hyperparams["n_steps"] = 1
    return hyperparams


def _sample_common(trial: optuna.Trial, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    :return: What all variants have, as drawn
    """
    one_minus_gamma = trial.suggest_float("one_minus_gamma", 0.001, 0.03, log=True)
    # From 2**6=64 to 2**10=1024
    batch_size_pow = trial.suggest_int("batch_size_pow", 6, 10)
    # Display true values
    trial.set_user_attr("gamma", 1 - one_minus_gamma)
    trial.set_user_attr("batch_size", 2**batch_size_pow)
    hyperparams = {
        "one_minus_gamma": one_minus_gamma,
        "batch_size_pow": batch_size_pow,
        "learning_rate": trial.suggest_float("learning_rate", 3e-5, 0.002, log=True),
        "tau": trial.suggest_float("tau", 0.001, 0.02, log=True),
        "pessimism": trial.suggest_float("pessimism", 0.0, 1.0),
        "net_arch": trial.suggest_categorical("net_arch", ["medium", "large", "verybig"]),
        "n_critics": trial.suggest_categorical("n_critics", [2, 5, 10]),
    }
    if additional_args["using_her_replay_buffer"]:
        # It relabels single transitions: no chunks
        return sample_her_params(trial, hyperparams, additional_args["her_kwargs"])
    return {**hyperparams, "chunk_size": trial.suggest_categorical("chunk_size", [1, 5])}


def make_sampler(**ranges: tuple[float, float]) -> Sampler:
    """
    :param ranges: Ends of the ranges of arguments that a variant has beside those that all have, on a logarithmic scale
    :return: A sampler as RL Zoo takes them: of a trial, the dimension of the actions, the number of environments, and
        whether there is a ``HerReplayBuffer``, with its arguments. It gives arguments of QAM
    """

    def sample(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
        own = {name: trial.suggest_float(name, low, high, log=True) for name, (low, high) in ranges.items()}
        return convert_qam_params({**own, **_sample_common(trial, additional_args)})

    return sample


# The right one depends on the scale of the returns: over as many orders as there are rewards
TEMPERATURES = (0.03, 100.0)
SAMPLERS = {
    "qam": make_sampler(inverse_temperature=TEMPERATURES),
    "qam_edit": make_sampler(edit_scale=(0.03, 1.0), inverse_temperature=TEMPERATURES),
    "qam_f": make_sampler(distill_coef=(0.3, 1000.0), inverse_temperature=TEMPERATURES),
    # The temperature is learned
    "trqam": make_sampler(kl_budget=(0.03, 10.0)),
    "bam": make_sampler(inverse_temperature=TEMPERATURES),
}
