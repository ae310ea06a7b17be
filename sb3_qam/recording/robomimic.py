"""robomimic's HDF5 files, as Minari datasets."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
from minari import MinariDataset

from sb3_qam.recording.arrays import open_source
from sb3_qam.recording.importing import ActionSpace, Recording, import_episodes


def import_robomimic(
    path: str | Path,
    dataset_id: str,
    observation_keys: Sequence[str] | None = None,
    mask: str | None = None,
    *,
    flatten_obs: bool = False,
    action_space: ActionSpace = None,
) -> MinariDataset:
    """
    Write the demonstrations of a robomimic file into the local Minari cache, one at a time.

    Observations are a Dict of what is below ``obs``, for ``MultiInputPolicy``, or with ``flatten_obs`` a vector of all
    of it, as robosuite's ``GymWrapper`` gives it. As in robomimic's own offline learning, ``dones`` are terminations.
    Where there is no ``next_obs`` and no termination, the last step is left out, with a warning that counts them. Steps
    with a reward of 1, which robosuite gives for success, have ``success`` in their infos.

    :param path: The file
    :param dataset_id: Id of the Minari dataset
    :param observation_keys: Which observations, in this order; all by default
    :param mask: Name of a filter below ``mask``, such as ``train``: only its demonstrations
    :param flatten_obs: Whether to join the observations, which have to be vectors
    :param action_space: As for :func:`~sb3_qam.recording.import_arrays`; robosuite's is [-1, 1]
    :return: The dataset
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if the id is not one or taken, the file is not robomimic's or damaged, there is no such mask or
        key, or values are not finite or of different shapes; file, demonstration and key are named
    :raises RuntimeError: if another process writes the dataset
    """
    path = Path(path)
    with closing(open_source(path)) as file:
        source = _Demonstrations(path, file, observation_keys, mask)
        return import_episodes(source, dataset_id, None, action_space, source.description, flatten_obs)


class _Demonstrations:
    """The demonstrations of a file, by the numbers in their names."""

    def __init__(self, path: Path, file: h5py.File, keys: Sequence[str] | None, mask: str | None) -> None:
        self.file = path
        try:
            self.data = file["data"]
            names = list(self.data)
            if mask is not None:
                masks = list(file.get("mask", ()))
                if mask not in masks:
                    raise ValueError(f"there is no mask '{mask}', only {', '.join(masks) or 'none'}")
                names = [name.decode() for name in file["mask"][mask][()]]
            numbers = sorted(int(name.removeprefix("demo_")) for name in names)
            self.lengths = {number: len(self.data[f"demo_{number}/actions"]) for number in numbers}
            env_name = json.loads(self.data.attrs.get("env_args", "{}")).get("env_name", "an unknown environment")
            self.keys = keys if keys is not None else list(self.data[f"demo_{numbers[0]}/obs"]) if numbers else ()
        except Exception as error:
            raise ValueError(
                f"{path} cannot be read as one of robomimic's files: {str(error).strip(chr(34))}. Expected data/demo_N "
                "with actions, rewards and obs, for which robomimic's dataset_states_to_obs.py may have to be run."
            ) from error
        self.description = f"Demonstrations of {env_name}, from robomimic's {path.name}."

    def actions(self, number: int) -> np.ndarray:
        return self.data[f"demo_{number}/actions"][()]

    def episode(self, number: int) -> Recording:
        demo = self.data[f"demo_{number}"]
        observations = {key: demo["obs"][key][()] for key in self.keys}
        if "next_obs" in demo:
            for key, rows in observations.items():
                following = demo["next_obs"][key]
                if len(following) != len(rows):
                    raise ValueError(f"next_obs/{key} holds {len(following)} values, obs/{key} {len(rows)}")
                observations[key] = np.concatenate([rows, following[-1:]])
        rewards = demo["rewards"][()]
        dones = demo["dones"][()] if "dones" in demo else np.zeros(len(rewards), bool)
        return Recording(observations, self.actions(number), rewards, dones, successes=rewards >= 1)
