"""How well the model does on episodes that it does not learn from."""

from collections import defaultdict

import numpy as np

from sb3_qam.common.buffers import OfflineBuffer
from sb3_qam.common.callbacks.periodic import PeriodicCallback
from sb3_qam.datasets.sources import OfflineDataset
from sb3_qam.utils.checks import check_positive_int


class OfflineEvalCallback(PeriodicCallback):
    """
    Records under ``eval_offline/``, on held-out Minari episodes:

    - ``td_error``: mean squared error of the critics against their target, ``train/critic_loss`` of new data
    - ``data_value`` and ``policy_value``: mean of the critics at the actions of the data, and at those of the policy in
      the same states
    - ``bc_loss``: the flow-matching loss of the behavior flow, ``train/bc_loss`` of new data

    Transitions and noise are the same at each evaluation, so that differences come from training. While the
    behavior alone is trained (``objective="bc"``) there is only ``bc_loss``. With ``n_steps`` or ``chunk_size`` of
    h > 1 these are means over complete sequences, while the losses of training count those that an episode's end cuts
    short as 0: of episodes of T steps they are lower by the factor (T - h + 1) / T. Training is the same, bit by bit,
    with and without the callback. Rewards are transformed and observations normalized as in training.

    :param dataset: The episodes: id or folder of a Minari dataset, a dataset object, or a list of these, as
        ``offline_dataset`` of the model. ``dataset.filter_episodes`` and ``minari.split_dataset`` divide one
    :param eval_freq: Timesteps between two evaluations: gradient steps offline, environment steps online
    :param n_transitions: How many transitions to evaluate at most; chosen at random where there are more
    :param batch_size: Number of transitions that are evaluated together
    :param seed: Seed of the callback's own random numbers
    :param verbose: Verbosity level: 0 for no output, 1 for info messages
    :raises ValueError: if an argument is out of range; and, when training begins, if the dataset is unusable or does
        not fit the model
    :raises FileNotFoundError: when training begins, if the dataset is neither in the local Minari cache nor to be
        downloaded
    """

    def __init__(
        self,
        dataset: OfflineDataset,
        eval_freq: int = 1000,
        n_transitions: int = 4096,
        batch_size: int = 1024,
        seed: int = 0,
        verbose: int = 0,
    ) -> None:
        super().__init__(eval_freq, seed, verbose)
        check_positive_int("eval_freq", eval_freq)
        check_positive_int("n_transitions", n_transitions)
        check_positive_int("batch_size", batch_size)
        self.dataset = dataset
        self.n_transitions = n_transitions
        self.batch_size = batch_size
        self._buffer: OfflineBuffer | None = None

    def _on_new_model(self) -> None:
        self._buffer, _ = self.model.make_offline_buffer(self.dataset)
        starts = self._buffer.complete_starts()
        # In order, because mapped files are read in that way
        self._rows = np.sort(np.random.default_rng(self.seed).permutation(starts)[: self.n_transitions])

    def _report(self) -> None:
        assert self._buffer is not None  # for mypy
        sums: dict[str, float] = defaultdict(float)
        with self._aside(self.seed):
            for start in range(0, len(self._rows), self.batch_size):
                rows = self._rows[start : start + self.batch_size]
                batch = self._buffer.batch_of(rows, env=self.model._vec_normalize_env)
                for name, mean in self.model.evaluate_batch(batch).items():
                    sums[name] += float(mean) * len(rows)
        for name, total in sums.items():
            self.logger.record(f"eval_offline/{name}", total / len(self._rows))
