"""Where RL Zoo's hyper-parameter search looks for QAM's arguments."""

from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import convert_offpolicy_params, sample_her_params


def convert_qam_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: What a trial has drawn, as Optuna's storage has it
    :return: Arguments of QAM
    """
    hyperparams = convert_offpolicy_params(sampled_params)
    hyperparams["policy_kwargs"]["n_critics"] = hyperparams.pop("n_critics")
    return hyperparams


def sample_qam_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Sampler for QAM hyperparams.

    :param trial: The trial
    :param n_actions: Dimension of the actions
    :param n_envs: Number of environments
    :param additional_args: Whether there is a ``HerReplayBuffer``, and its arguments
    :return: Arguments of QAM
    """
    return convert_qam_params(
        {
            # The right one depends on the scale of the returns: over as many orders as there are rewards
            "inverse_temperature": trial.suggest_float("inverse_temperature", 0.03, 100.0, log=True),
            **_sample_common(trial, additional_args),
        }
    )


def sample_qam_edit_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Sampler for QAM-E hyperparams.

    :param trial: The trial
    :param n_actions: Dimension of the actions
    :param n_envs: Number of environments
    :param additional_args: Whether there is a ``HerReplayBuffer``, and its arguments
    :return: Arguments of QAM, ``edit_scale`` among them
    """
    edit_scale = trial.suggest_float("edit_scale", 0.03, 1.0, log=True)
    return {"edit_scale": edit_scale, **sample_qam_params(trial, n_actions, n_envs, additional_args)}


def sample_qam_f_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Sampler for QAM-F hyperparams.

    :param trial: The trial
    :param n_actions: Dimension of the actions
    :param n_envs: Number of environments
    :param additional_args: Whether there is a ``HerReplayBuffer``, and its arguments
    :return: Arguments of QAM, ``distill_coef`` among them
    """
    distill_coef = trial.suggest_float("distill_coef", 0.3, 1000.0, log=True)
    return {"distill_coef": distill_coef, **sample_qam_params(trial, n_actions, n_envs, additional_args)}


def sample_trqam_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Sampler for TRQAM hyperparams. The temperature is learnt.

    :param trial: The trial
    :param n_actions: Dimension of the actions
    :param n_envs: Number of environments
    :param additional_args: Whether there is a ``HerReplayBuffer``, and its arguments
    :return: Arguments of QAM, ``kl_budget`` among them
    """
    kl_budget = trial.suggest_float("kl_budget", 0.03, 10.0, log=True)
    return convert_qam_params({"kl_budget": kl_budget, **_sample_common(trial, additional_args)})


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
