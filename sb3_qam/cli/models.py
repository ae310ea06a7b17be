"""Saved models, as the commands load them: to act."""

from functools import partial
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_qam.common.phases import SpacesOnlyEnv
from sb3_qam.recording.scripted import without_buffer
from sb3_qam.results.runs import settings_folder
from sb3_qam.utils.plain_yaml import read_yaml
from sb3_qam.variants import find_algorithm

STATISTICS = "vecnormalize.pkl"


def algorithm_of(path: Path, name: str | None) -> tuple[str, type[BaseAlgorithm]]:
    """
    :param path: Path of the saved model
    :param name: Name of its algorithm, by default that of the model's RL Zoo run, and of a model by itself ``"qam"``
    :return: The name, and the class
    :raises ValueError: if there is none of that name, or the settings of the run cannot be read
    """
    settings = settings_folder(path.parent)
    if name is None and settings is not None and (settings / "args.yml").is_file():
        name = read_yaml(settings / "args.yml").get("algo")
    return find_algorithm(str(name or "qam"))


def load_model(algorithm: type[BaseAlgorithm], path: Path, **kwargs: Any) -> Any:
    """
    :param algorithm: Its class
    :param path: Path of the saved model, which may lack its suffix as for SB3
    :param kwargs: Of ``load()``
    :return: The model, without a replay buffer
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it is not a model of this class, or there is no such device
    """
    file = path if path.is_file() else path.with_name(f"{path.name}.zip")
    if not file.is_file():
        raise FileNotFoundError(f"There is no saved model {path}.")
    with file.open("rb") as opened:
        if not is_zipfile(opened):
            raise ValueError(f"{file} is no saved model: expected a zip file that save() or RL Zoo wrote.")
    if "device" in kwargs:
        try:
            get_device(kwargs["device"])
        except RuntimeError as error:
            raise ValueError(f"There is no device '{kwargs['device']}': {error}") from error
    try:
        return algorithm.load(path, **without_buffer(algorithm), **kwargs)
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError) as error:
        # What SB3 stumbles over depends on the algorithms
        raise ValueError(
            f"{path} cannot be loaded as a model of {algorithm.__name__} ({type(error).__name__}: {error}): "
            "give its own algorithm by --algo, where the command has that option."
        ) from error


def attach_statistics(model: Any, path: Path, vec_normalize: Path | None) -> None:
    """
    Let a model that was trained with ``VecNormalize`` see what it did in training.

    :param model: The model
    :param path: Where it was saved
    :param vec_normalize: The file of its statistics, by default the one that RL Zoo has saved beside the model, if any
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it is something else, or there is none and the model needs one
    """
    settings = settings_folder(path.parent)
    if vec_normalize is None and settings is not None and (settings / STATISTICS).is_file():
        vec_normalize = settings / STATISTICS
    if vec_normalize is not None:
        env = DummyVecEnv([partial(SpacesOnlyEnv, model.observation_space, model.action_space)])
        model._vec_normalize_env = load_statistics(vec_normalize, env)
    check_normalized(model, path, model.get_vec_normalize_env())


def check_normalized(model: Any, path: Path, normalization: VecNormalize | None) -> None:
    """
    :param model: The model
    :param path: Where it was saved
    :param normalization: What normalizes its observations
    :raises ValueError: if nothing does, and something did in training
    """
    if getattr(model, "_observations_normalized", False) and normalization is None:
        raise ValueError(
            f"{path} has learned from observations that VecNormalize normalized: give its statistics, a file that "
            "VecNormalize.save() wrote, by --vec-normalize."
        )


def load_statistics(path: Path, env: VecEnv) -> VecNormalize:
    """
    :param path: The file of statistics
    :param env: Environments
    :return: These, observations normalized as they were in training
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it is something else
    """
    try:
        normalized = VecNormalize.load(str(path), env)
    except OSError:
        raise
    except Exception as error:
        # Pickle raises anything
        raise ValueError(f"{path} holds no statistics of a VecNormalize for these spaces ({error!r}).") from error
    normalized.training = normalized.norm_reward = False
    return normalized
