"""What a model learns from: its datasets, opened and checked, and batches of their union with online experience."""

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_qam.common.buffers import OfflineBuffer, TransitionBatch, n_available, sample_union
from sb3_qam.common.device_buffer import DeviceOfflineBuffer
from sb3_qam.common.phases import ONLINE, Phase
from sb3_qam.datasets.minari import check_dataset_spaces, training_spaces
from sb3_qam.datasets.rewards import RewardTransform
from sb3_qam.datasets.sources import OfflineDataset, OpenDataset, open_datasets, with_absolute_folders
from sb3_qam.datasets.storage import load_episodes


class OfflineDataAlgorithm(OffPolicyAlgorithm):
    """
    Reads datasets into an offline buffer beside the replay buffer, when training needs them, and draws from both. Its
    attributes are arguments of :class:`sb3_qam.common.offline_to_online.OfflineToOnlineAlgorithm`.
    """

    chunk_size: int
    offline_dataset: OfflineDataset | None
    offline_fraction: float | None
    offline_storage: str
    reward_transform: RewardTransform | None
    offline_buffer: OfflineBuffer | None = None
    # Outlives a dataset object, which is not saved
    _offline_dataset_id: str | None = None
    # What trains now
    _phase: Phase = ONLINE
    _augmentation: Callable[[TransitionBatch], TransitionBatch]

    @property
    def sequence_length(self) -> int:
        """How many successive steps a sample covers."""
        return max(self.n_steps, self.chunk_size)

    def _sequence_kwargs(self) -> dict[str, Any]:
        """:return: What the offline and the online store need to give the same kind of samples"""
        return {"n_steps": self.sequence_length, "gamma": self.gamma, "chunk_size": self.chunk_size}

    def _take_spaces_from_dataset(self) -> None:
        if self.offline_dataset is None:
            raise ValueError(
                "Neither env nor offline_dataset was given, so the observation and action spaces are unknown: "
                "pass one of them."
            )
        self.observation_space, self.action_space = training_spaces(open_datasets(self.offline_dataset)[0])
        self.n_envs = 1

    def _check_offline_dataset(self) -> None:
        """Refuse a dataset that cannot be used when the model is made, and not only when training begins."""
        if self.offline_dataset is not None:
            self._open_offline_data(self.offline_dataset)

    def _open_offline_data(self, dataset: OfflineDataset) -> list[OpenDataset]:
        opened = open_datasets(dataset)
        for each in opened:
            check_dataset_spaces(each, self.observation_space, self.action_space)
        return opened

    def make_offline_buffer(self, dataset: OfflineDataset) -> OfflineBuffer:
        """
        Read a dataset as the model reads its own; the model stays as it is.

        :param dataset: As ``offline_dataset`` of the constructor
        :return: Its data
        :raises ValueError: if it is unusable or does not fit the model's spaces
        :raises FileNotFoundError: if it is neither in the local Minari cache nor to be downloaded
        """
        buffer_class = DeviceOfflineBuffer if self.offline_storage == "cuda" else OfflineBuffer
        return buffer_class(
            load_episodes(self._open_offline_data(dataset), self.offline_storage, self.reward_transform),
            self.observation_space,
            self.action_space,
            device=self.device,
            **self._sequence_kwargs(),
        )

    def _load_offline_data(self, dataset: OfflineDataset) -> None:
        """Read a dataset into the offline buffer; where it is refused, the model stays as it was."""
        self.offline_buffer = self.make_offline_buffer(dataset)
        self._offline_dataset_id = self.offline_buffer.name
        self.offline_dataset = with_absolute_folders(dataset)

    def _require_offline_data(self, needed_by: str | None) -> None:
        """
        Make sure that the data the model was made for is there before training begins.

        :param needed_by: What cannot do without; ``None`` for online learning, which can if it draws none of it
        """
        if self.offline_buffer is not None or (self.offline_fraction == 0 and needed_by is None):
            return
        if self.offline_dataset is not None:
            self._load_offline_data(self.offline_dataset)
        elif self._offline_dataset_id is not None:
            raise ValueError(
                f"This model was trained with dataset '{self._offline_dataset_id}', which is not stored in its file. "
                f"Give it again, {type(self).__name__}.load(path, offline_dataset=...) or pretrain(dataset), "
                "or continue without it by offline_fraction=0.0."
            )
        elif needed_by is not None:
            raise ValueError(
                f"{needed_by} needs offline data: pass {type(self).__name__}(..., offline_dataset=...), or a Minari "
                "dataset to pretrain(dataset)."
            )

    @property
    def has_training_data(self) -> bool:
        """Whether there is anything to draw batches from."""
        assert self.replay_buffer is not None  # for mypy
        uses_offline_data = self._phase.is_offline or self.offline_fraction != 0
        return (self.offline_buffer is not None and uses_offline_data) or n_available(self.replay_buffer) > 0

    def _sample_batch(self, batch_size: int) -> TransitionBatch:
        """
        :param batch_size: Number of samples
        :return: A batch of the union of offline and online data, as an update sees it
        """
        return self._augmentation(self.draw_batch(batch_size))

    def draw_batch(self, batch_size: int) -> TransitionBatch:
        """
        :param batch_size: Number of samples
        :return: A batch of the union of offline and online data, images as they were recorded
        """
        assert self.replay_buffer is not None  # for mypy
        # A share of nothing concerns online batches: an offline phase has nothing else to learn from
        uniform = self._phase.is_offline and self.offline_fraction == 0
        return sample_union(
            self.offline_buffer,
            self.replay_buffer,
            batch_size,
            None if uniform else self.offline_fraction,
            self.gamma,
            env=self._vec_normalize_env,
        )
