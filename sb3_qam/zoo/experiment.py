"""RL Zoo's experiments with our configurations, datasets and messages."""

import argparse
import os
import shlex
import shutil
import sys
from collections import OrderedDict
from collections.abc import Callable
from pprint import pprint
from types import ModuleType
from typing import Any

import gymnasium as gym
import optuna
import rl_zoo3.exp_manager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ProgressBarCallback

from sb3_qam.common.offline_to_online import OfflineToOnlineAlgorithm
from sb3_qam.common.phases import PhaseProgressBarCallback
from sb3_qam.utils.names import arguments_of, closest
from sb3_qam.zoo import search
from sb3_qam.zoo.hyperparams import hyperparams_of
from sb3_qam.zoo.wrappers import wrap_as_environment


class ExperimentManager(rl_zoo3.exp_manager.ExperimentManager):
    """
    The zoo's own, which besides finds our configurations, wraps the offline dataset as it wraps the environment, says
    how to resume training that was interrupted, leaves no folder of a run that did not begin, and prunes trials whose
    losses are not finite.

    :param args: The command's arguments
    :param algo: Name of the algorithm
    :param env_id: Id of the environment
    :param others: The zoo's other arguments
    :param kwargs: The zoo's other arguments. ``config``, the file of the configurations, is by default the package's
        for our algorithms, and the zoo's for its own
    """

    def __init__(self, args: argparse.Namespace, algo: str, env_id: str, *others: Any, **kwargs: Any) -> None:
        if kwargs.get("config") is None and issubclass(rl_zoo3.ALGOS[algo], OfflineToOnlineAlgorithm):
            # The zoo imports a module, which does not know for which algorithm
            module = ModuleType(f"sb3_qam.zoo.hyperparams.{algo}")
            module.hyperparams = hyperparams_of(algo)  # type: ignore[attr-defined]
            sys.modules[module.__name__] = module
            kwargs["config"] = module.__name__
        super().__init__(args, algo, env_id, *others, **kwargs)

    def _preprocess_hyperparams(
        self, hyperparams: dict[str, Any]
    ) -> tuple[dict[str, Any], Callable[[gym.Env], gym.Env] | None, list[BaseCallback], Callable | None]:
        # The zoo takes its own out of it
        config = hyperparams.copy()
        hyperparams, *others = super()._preprocess_hyperparams(hyperparams)
        # Those of action noise the zoo takes out later
        known = arguments_of(rl_zoo3.ALGOS[self.algo]) | {"noise_type", "noise_std"}
        for name in hyperparams.keys() - known:
            raise ValueError(f"{self.algo} has no hyper-parameter '{name}'{closest(name, known)}")
        if hyperparams.get("offline_dataset") is not None:
            hyperparams["offline_dataset"] = wrap_as_environment(hyperparams["offline_dataset"], config)
        return hyperparams, *others  # type: ignore[return-value]

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        if not (self.storage and self.study_name and self.trial_id):
            return super().read_hyperparameters()
        # The zoo would put what was drawn in place of whole dicts, of which it is a part
        trial_id, self.trial_id = self.trial_id, None
        hyperparams, _ = super().read_hyperparameters()
        self.trial_id = trial_id
        drawn = self.load_trial(self.storage, self.study_name, trial_id)
        print("From the Optuna study:")
        pprint(drawn)
        for name, value in {**drawn, **(self.custom_hyperparams or {})}.items():
            if isinstance(value, dict):
                layers = [each for each in (hyperparams.get(name), drawn.get(name), value) if isinstance(each, dict)]
                value = {key: part for layer in layers for key, part in layer.items()}
            hyperparams[name] = value
        return hyperparams, OrderedDict(sorted(hyperparams.items()))

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        was_there = os.path.exists(self.save_path)
        try:
            return super().setup_experiment()
        except BaseException as error:
            # Else a run without a model would be the latest
            if not was_there:
                shutil.rmtree(self.save_path, ignore_errors=True)
            if isinstance(error, (AttributeError, LookupError, RuntimeError, TypeError)):
                # A value that is not what an argument takes
                raise ValueError(f"The run cannot be set up: {type(error).__name__}: {error}") from error
            raise

    def create_callbacks(self) -> None:
        super().create_callbacks()
        self.callbacks = [
            PhaseProgressBarCallback() if type(each) is ProgressBarCallback else each for each in self.callbacks
        ]

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        super().save_trained_model(model)
        n_missing = model._total_timesteps - model.num_timesteps
        if n_missing > 0:
            # The last one of repeated options counts
            options = ["-i", f"{self.save_path}/{self.env_name}.zip", "-n", str(min(n_missing, self.n_timesteps))]
            print(
                f"Training ended {n_missing} steps early. To resume from {self.save_path}:\n"
                f"  sb3-qam train {shlex.join([*sys.argv[1:], *options])}"
            )

    def objective(self, trial: optuna.Trial) -> float:
        configured = search.configured_policy_kwargs.set(self._hyperparams.get("policy_kwargs") or {})
        try:
            return super().objective(trial)
        except FloatingPointError as error:
            # The zoo prunes trials in which other algorithms fail by NaN
            raise optuna.exceptions.TrialPruned(str(error)) from error
        finally:
            search.configured_policy_kwargs.reset(configured)
