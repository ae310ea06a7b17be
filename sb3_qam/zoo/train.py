"""RL Zoo's training with QAM in it: ``python -m sb3_qam.zoo.train --algo qam --env ENV``, with the zoo's options."""

import os
import sys
from contextlib import redirect_stdout
from tempfile import TemporaryDirectory

import rl_zoo3.train

from sb3_qam.common.replicas import Replicas, find_replicas


def train() -> None:
    """
    The zoo's own command, with its arguments in ``sys.argv``. Where ``torchrun`` has started several processes, the
    first one alone writes, prints and tracks.

    :raises ValueError: if several processes are to search, each in its own way
    """
    replicas = find_replicas()
    if replicas.n_processes > 1 and {"-optimize", "--optimize-hyperparameters"} & set(sys.argv):
        raise ValueError(f"A search cannot be divided among {replicas.n_processes} processes: start it in one.")
    if replicas.is_first:
        rl_zoo3.train.train()
    else:
        _take_part(replicas)


def _take_part(replicas: Replicas) -> None:
    os.environ["WANDB_MODE"] = "disabled"
    with TemporaryDirectory(prefix=f"sb3_qam_{replicas.rank}_") as folder, open(os.devnull, "w") as nowhere:
        # The last one of repeated options counts
        sys.argv += ["--log-folder", folder]
        with redirect_stdout(nowhere):
            rl_zoo3.train.train()


if __name__ == "__main__":
    train()
