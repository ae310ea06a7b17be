"""LeRobot's datasets, versions 2.0 to 3, as Minari datasets: pyarrow reads their tables and PyAV their videos."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from minari import MinariDataset
from PIL import Image

from sb3_qam.recording.importing import ActionSpace, Recording, import_episodes

REWARD, DONE, SUCCESS, TRUNCATED = "next.reward", "next.done", "next.success", "next.truncated"
IMAGES = ("image", "video")
#: ``"sparse"``, the name of a feature, or a function of an episode's features
Reward = str | Callable[[dict[str, np.ndarray]], Any] | None


def import_lerobot(
    path: str | Path,
    dataset_id: str,
    reward: Reward = None,
    *,
    observation_keys: Sequence[str] | None = None,
    task: str | None = None,
    image_size: tuple[int, int] | None = None,
    flatten_obs: bool = False,
    action_space: ActionSpace = None,
) -> MinariDataset:
    """
    Write a LeRobot dataset (codebase version 2.0, 2.1 or 3) into the local Minari cache, one episode at a time.

    Observations are a Dict of the features that begin with ``observation.``, for ``MultiInputPolicy``, with ``_`` for
    each dot, which PyTorch does not take in the names of modules: ``observation_images_top``. Images are channel-last
    ``uint8``, from parquet files as they are and from videos as PyAV decodes them.

    An episode terminates at its last step if that succeeded (``next.success``), where this is recorded, or else if it
    is done (``next.done``) and not truncated (``next.truncated``), or if the reward is sparse. LeRobot does not store
    the observation after the last step: where an episode does not terminate, that step is left out, with a warning
    that counts them. ``next.success`` becomes ``success`` in the infos.

    :param path: The folder of the dataset, which has ``meta/info.json`` in it
    :param dataset_id: Id of the Minari dataset
    :param reward: Name of a feature, such as ``next.reward`` or ``next.success`` (1 where it is true); ``"sparse"``, 1
        at the last step of each episode, which all are successes, else 0; or a function that is given a dict with all
        features of an episode but images, n rows each, and returns n rewards. By default ``next.reward`` or
        ``next.success``, if they are there
    :param observation_keys: Which observations, with dots, in this order; all by default
    :param task: Only episodes of this task, in the dataset's words
    :param image_size: Height and width to scale images to
    :param flatten_obs: Whether to join the observations to one vector
    :param action_space: As for :func:`~sb3_qam.recording.import_arrays`; ``"data"`` for the range of the data is what
        joint angles often need
    :return: The dataset
    :raises FileNotFoundError: if there is no such dataset
    :raises ImportError: if pyarrow is not installed, or, for videos, PyAV
    :raises ValueError: if the id is not one or taken, there are no rewards, no such task or feature, a file is damaged,
        or values are not finite or of different shapes; folder, episode and feature are named
    :raises RuntimeError: if another process writes the dataset
    """
    source = _LeRobot(Path(path), reward, observation_keys, task, image_size)
    return import_episodes(source, dataset_id, None, action_space, f"LeRobot's {Path(path).name}.", flatten_obs)


class _LeRobot:
    """The episodes of a folder, whose layout is in its own metadata."""

    def __init__(
        self,
        path: Path,
        reward: Reward,
        observation_keys: Sequence[str] | None,
        task: str | None,
        image_size: tuple[int, int] | None,
    ) -> None:
        self.file, self.image_size = path, image_size
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError("LeRobot's datasets need pyarrow and av: pip install 'sb3-qam[lerobot]'.") from error
        self.parquet = pyarrow.parquet
        if not (path / "meta" / "info.json").is_file():
            raise FileNotFoundError(f"{path} holds no LeRobot dataset: there is no {path / 'meta' / 'info.json'}.")
        try:
            self.info = json.loads((path / "meta" / "info.json").read_text())
            self.features: dict[str, dict[str, Any]] = self.info["features"]
            self.is_v3 = self.info["codebase_version"].removeprefix("v").startswith("3")
            self.episodes = self._read_episodes()
            self.lengths = {number: int(each["length"]) for number, each in self.episodes.items()}
        except Exception as error:
            raise ValueError(
                f"The metadata in {path / 'meta'} cannot be read: {error!r}. Copy it here again."
            ) from error
        if task is not None:
            self._choose(task)
        names = [name for name in self.features if name.split(".")[0] == "observation"]
        self.keys = [name for name in names if self._is_numeric(name)] if observation_keys is None else observation_keys
        if reward is None:
            reward = next((name for name in (REWARD, SUCCESS) if name in self.features), None)
        if reward is None:
            raise ValueError(
                f"{path} has neither {REWARD} nor {SUCCESS}: give reward='sparse' if all episodes are successes, the "
                "name of a feature, or a function of an episode."
            )
        self.reward = reward
        named = [reward] if isinstance(reward, str) and reward != "sparse" else []
        if unknown := [name for name in ("action", *self.keys, *named) if name not in self.features]:
            raise ValueError(f"{path} has no feature {', '.join(map(repr, unknown))}, only {', '.join(self.features)}.")
        # Of the last file, which in version 3 holds many episodes
        self._table: tuple[Path | None, Any] = (None, None)

    def _read_episodes(self) -> dict[int, dict[str, Any]]:
        meta = self.file / "meta"
        if self.is_v3:
            paths = sorted((meta / "episodes").glob("*/*.parquet"))
            rows = []
            for path in paths:
                names = [name for name in self.parquet.read_schema(path).names if not name.startswith("stats/")]
                rows += self.parquet.read_table(path, columns=names).to_pylist()
        else:
            rows = [json.loads(line) for line in (meta / "episodes.jsonl").read_text().splitlines()]
        return {int(row["episode_index"]): row for row in sorted(rows, key=lambda row: row["episode_index"])}

    def _choose(self, task: str) -> None:
        self.lengths = {k: n for k, n in self.lengths.items() if task in self.episodes[k].get("tasks", ())}
        if not self.lengths:
            known = dict.fromkeys(each for episode in self.episodes.values() for each in episode.get("tasks", ()))
            raise ValueError(
                f"{self.file} has no episodes of the task {task!r}, only of {', '.join(map(repr, known))}."
            )

    def _is_numeric(self, name: str) -> bool:
        return self.features[name]["dtype"] not in ("string", "language", "audio")

    def actions(self, number: int) -> np.ndarray:
        return self._column("action", number)

    def episode(self, number: int) -> Recording:
        n = self.lengths[number]
        observations = {name.replace(".", "_"): self._column(name, number) for name in self.keys}
        success = self._column(SUCCESS, number).reshape(n) if SUCCESS in self.features else None
        terminations = np.zeros(n, bool)
        if self.reward == "sparse":
            terminations[-1:] = True
        elif success is not None:
            terminations[-1:] = success[-1:]
        elif DONE in self.features:
            terminations = self._column(DONE, number).reshape(n).astype(bool)
            if TRUNCATED in self.features:
                terminations &= ~self._column(TRUNCATED, number).reshape(n).astype(bool)
        return Recording(observations, self.actions(number), self._rewards(number), terminations, success)

    def _rewards(self, number: int) -> Any:
        if callable(self.reward):
            names = [name for name in self.features if self._is_numeric(name) and not self._is_image(name)]
            return self.reward({name: self._column(name, number) for name in names})
        if self.reward != "sparse":
            return self._column(self.reward, number)
        rewards = np.zeros(self.lengths[number], np.float32)
        rewards[-1:] = 1
        return rewards

    def _is_image(self, name: str) -> bool:
        return self.features[name]["dtype"] in IMAGES

    def _column(self, name: str, number: int) -> np.ndarray:
        """:return: A feature in an episode; in the errors of the libraries there is neither its name nor the file's"""
        template = self.info["video_path" if self.features[name]["dtype"] == "video" else "data_path"]
        path = self.file / template.format(**self._file_of(number, name))
        try:
            if not path.is_file():
                raise ValueError("there is no such file")
            if self.features[name]["dtype"] == "video":
                return self._frames(path, name, number)
            return self._values(path, name, number)
        except ImportError:
            raise
        except Exception as error:
            raise ValueError(f"{name} in {path}: {error}") from error

    def _file_of(self, number: int, name: str) -> dict[str, Any]:
        """:return: What the metadata's patterns of paths have places for"""
        if not self.is_v3:
            chunk = number // self.info.get("chunks_size", 1000)
            return {"episode_chunk": chunk, "episode_index": number, "video_key": name}
        where = f"videos/{name}" if self.features[name]["dtype"] == "video" else "data"
        episode = self.episodes[number]
        return {
            "chunk_index": episode[f"{where}/chunk_index"],
            "file_index": episode[f"{where}/file_index"],
            "video_key": name,
        }

    def _values(self, path: Path, name: str, number: int) -> np.ndarray:
        n, shape = self.lengths[number], tuple(self.features[name]["shape"])
        if self._table[0] != path:
            table = self.parquet.read_table(path)
            self._table = (path, (table, table["episode_index"].to_numpy()))
        table, numbers = self._table[1]
        rows = np.flatnonzero(numbers == number)
        if len(rows) != n:
            raise ValueError(f"the episode has {len(rows)} rows there, expected {n}")
        values = table[name].slice(rows[0], n).combine_chunks()
        if self._is_image(name):
            return np.stack([self._resized(Image.open(io.BytesIO(each["bytes"]))) for each in values.to_pylist()])
        # Lists in lists, of arrays of several dimensions
        while hasattr(values.type, "value_type"):
            values = values.flatten()
        array = values.to_numpy(zero_copy_only=False)
        if array.dtype == object:
            raise ValueError("some values are missing, or are not numbers")
        if array.size != n * int(np.prod(shape)):
            raise ValueError(f"it holds {array.size} numbers, expected {n} times the shape {shape}")
        return array.reshape(n, *shape)

    def _resized(self, image: Image.Image) -> np.ndarray:
        image = image.convert("RGB")
        return np.asarray(image if self.image_size is None else image.resize(self.image_size[::-1]))

    def _frames(self, path: Path, name: str, number: int) -> np.ndarray:
        try:
            import av
        except ImportError as error:
            raise ImportError(
                "LeRobot's videos need av: pip install 'sb3-qam[lerobot]', or choose observation_keys without them."
            ) from error
        n, fps = self.lengths[number], self.info["fps"]
        start = float(self.episodes[number][f"videos/{name}/from_timestamp"]) if self.is_v3 else 0.0
        height, width = self.image_size or (None, None)
        frames: list[np.ndarray] = []
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            # To the key frame before
            container.seek(int(start / stream.time_base), stream=stream)  # type: ignore[operator]
            for frame in container.decode(stream):
                late = (frame.time - start) * fps - len(frames)
                if late < -0.5:
                    continue
                if late > 0.5 or len(frames) == n:
                    break
                frames.append(frame.to_ndarray(format="rgb24", width=width, height=height))
        if len(frames) != n:
            raise ValueError(f"it holds {len(frames)} of the episode's {n} frames at {fps} per second")
        return np.stack(frames)
