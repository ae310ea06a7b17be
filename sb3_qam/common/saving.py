"""Files that survive the end of their process, and from which training resumes as if it had not stopped."""

import io
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import json_to_data, open_path
from stable_baselines3.common.type_aliases import GymEnv

from sb3_qam.common.buffers import SequenceReplayBuffer
from sb3_qam.common.checks import SPACES, check_load_arguments, spaces_taken_over
from sb3_qam.utils.atomic import atomic_write
from sb3_qam.utils.checks import space_difference
from sb3_qam.utils.random_state import get_random_state, set_random_state

SelfResumable = TypeVar("SelfResumable", bound="ResumableAlgorithm")


@contextmanager
def replaced(path: str | Path | io.BufferedIOBase, suffix: str) -> Iterator[str | Path | io.BufferedIOBase]:
    """
    :param path: A path, or an open file, which is written as it is
    :param suffix: Appended to a path that has none, as SB3 does
    :return: What to write to; it replaces the file at that path when it is complete
    """
    if not isinstance(path, (str, os.PathLike)):
        yield path
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path if path.suffix else path.with_suffix(suffix)) as unfinished:
        yield unfinished


def read_attributes(path: str | Path | io.BufferedIOBase) -> dict[str, Any]:
    """
    :param path: A saved model
    :return: Its attributes as they are written, of which nothing is unpickled; none where SB3 is to say what is wrong
        with the file
    """
    file = open_path(path, "r", suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            return json.loads(archive.read("data"))
    except (zipfile.BadZipFile, KeyError):
        return {}
    finally:
        if file is not path:
            file.close()


def read_spaces(path: str | Path | io.BufferedIOBase, custom_objects: dict[str, Any]) -> dict[str, spaces.Space]:
    """
    :param path: A saved model
    :param custom_objects: What stands in place of what was saved
    :return: Its spaces; none where SB3 is to say what is wrong with the file
    """
    saved = read_attributes(path)
    if not set(SPACES) <= saved.keys():
        return {}
    return json_to_data(json.dumps({name: saved[name] for name in SPACES}), custom_objects)


class ResumableAlgorithm(OffPolicyAlgorithm):
    """Saves the states of the random generators with the model, and replaces files as a whole."""

    # Set by save() and used up by the first training after load()
    _random_state: dict[str, Any] | None = None

    def set_random_seed(self, seed: int | None = None) -> None:
        super().set_random_seed(seed)
        self._random_state = None

    def _resume_random_state(self) -> None:
        """Unless the model was loaded with another seed, continue with the random numbers of the run that was saved."""
        if self._random_state is not None and self._random_state["seed"] == self.seed:
            set_random_state(self._random_state, self.action_space, self.device)
        self._random_state = None

    @classmethod
    def load(
        cls: type[SelfResumable],
        path: str | Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfResumable:
        """
        Load the model from a zip-file. Arguments are those of SB3's ``load()``.

        :param path: path to the file (or a file-like) where to load the agent from
        :param env: the new environment to run the loaded model on (can be None if you only need prediction from a
            trained model). The floating-point type of its spaces need not be that of the model's, and becomes it
        :param device: Device on which the code should run.
        :param custom_objects: Dictionary of objects to replace upon loading.
        :param print_system_info: Whether to print system info from the saved model and the current system info
        :param force_reset: Force call to ``reset()`` before training to avoid unexpected behavior.
        :param kwargs: extra arguments to change the model when loading
        :return: new model instance with loaded parameters
        :raises ValueError: if the spaces of the environment are not the model's, an argument cannot be changed or is
            out of range, or the file is not a saved model
        :raises TypeError: if there is no such argument, or it has no effect on a saved model
        :raises FileNotFoundError: if there is no such file
        """
        check_load_arguments(cls, kwargs)
        if env is not None:
            env = cls._wrap_env(env)
            custom_objects = custom_objects or {}
            custom_objects = {**custom_objects, **spaces_taken_over(env, read_spaces(path, custom_objects))}
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    def save(
        self,
        path: str | Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save all the attributes of the object and the model parameters in a zip-file, with the state of the random
        generators: on a CPU, load() and continued training give what uninterrupted training would have given. Online
        this takes the replay buffer and the environment in the same state too. Datasets and replay buffers are not
        part of the file. A file that is there already is replaced as a whole, when the new one is complete.

        :param path: path to the file where the rl agent should be saved
        :param exclude: name of parameters that should be excluded in addition to the default ones
        :param include: name of parameters that might be excluded but should be included anyway
        """
        stand_ins = self._stand_ins()
        attributes = {name: getattr(self, name) for name in stand_ins}
        vars(self).update(stand_ins)
        try:
            with replaced(path, ".zip") as file:
                super().save(file, exclude, include)
        finally:
            vars(self).update(attributes)

    def _stand_ins(self) -> dict[str, Any]:
        """:return: What is saved in place of attributes, by their names"""
        if self._random_state is not None:
            return {}
        return {"_random_state": {"seed": self.seed, **get_random_state(self.action_space, self.device)}}

    def save_replay_buffer(self, path: str | Path | io.BufferedIOBase) -> None:
        """
        Save the replay buffer as a pickle file. A file that is there already is replaced as a whole, when the new one
        is complete.

        :param path: Path to the file where the replay buffer should be saved.
            if path is a str or pathlib.Path, the path is automatically created if necessary.
        """
        with replaced(path, ".pkl") as file:
            super().save_replay_buffer(file)

    def load_replay_buffer(self, path: str | Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Load a replay buffer from a pickle file.

        :param path: Path to the pickled replay buffer.
        :param truncate_last_traj: When using ``HerReplayBuffer``: whether to assume that the last trajectory in the
            replay buffer was finished
        :raises ValueError: if it is no replay buffer, or one of other spaces or another number of environments, or one
            of single transitions and the model has ``n_steps`` or ``chunk_size`` > 1. The model keeps its own then
        """
        current = self.replay_buffer
        try:
            super().load_replay_buffer(path, truncate_last_traj)
            self._check_loaded_replay_buffer(current)
        except Exception as error:
            self.replay_buffer = current
            if isinstance(error, AssertionError):
                raise ValueError(f"{path} cannot be loaded as a replay buffer: {error}.") from error
            raise
        if isinstance(self.replay_buffer, SequenceReplayBuffer):
            # Those of the model, which may have been loaded with others than it was saved with
            vars(self.replay_buffer).update(self._sequence_kwargs())

    def _check_loaded_replay_buffer(self, current: ReplayBuffer | None) -> None:
        """
        :param current: What the model had before
        :raises ValueError: if the one that was loaded cannot take its place
        """
        loaded: Any = self.replay_buffer
        for name in SPACES:
            difference = space_difference(getattr(self, name), getattr(loaded, name))
            if difference is not None:
                raise ValueError(f"The replay buffer has another {name} than the model: {difference}.")
        if loaded.n_envs != self.n_envs:
            raise ValueError(
                f"The replay buffer is of {loaded.n_envs} environment(s), and the model has {self.n_envs}: load the "
                "model with as many, or give the buffer to pretrain(replay_buffer=...)."
            )
        is_of_sequences = isinstance(loaded, SequenceReplayBuffer)
        length = self._sequence_kwargs()["n_steps"]
        if isinstance(current, SequenceReplayBuffer) and not is_of_sequences and length > 1:
            raise ValueError(
                f"A {type(loaded).__name__} gives no sequences of {length} steps: load the model with n_steps=1 and "
                "chunk_size=1."
            )

    def _sequence_kwargs(self) -> dict[str, Any]:
        """:return: What a store of sequences needs to give the samples that the model takes"""
        raise NotImplementedError
