"""What test_replicas.py starts: ``torchrun --nproc_per_node 2 -m tests.data_parallel FOLDER DATASET VARIANTS``."""

import atexit
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from torch import nn

from sb3_qam import QAM

VARIANTS: dict[str, dict[str, Any]] = {
    "qam": {},
    "chunks": {"chunk_size": 5, "adjoint": "scalar"},
    "edit": {"edit_scale": 0.2, "best_of_n": 3},
    "one_step": {"distill_coef": 10.0, "n_steps": 3},
    "trust_region": {"kl_budget": 0.05},
    "bptt": {"adjoint": "bptt", "residual": True},
}
N_STEPS, N_MORE_STEPS = 6, 4


class StopsAndDraws(BaseCallback):
    """Stops training, and draws random numbers that no other process draws."""

    def _on_step(self) -> bool:
        np.random.random()
        th.rand(1)
        return self.num_timesteps < N_STEPS


def make(dataset: str, **variant: Any) -> QAM:
    arguments: dict[str, Any] = {"batch_size": 60, "flow_steps": 4, "device": "cpu", "seed": 3}
    arguments |= {"policy_kwargs": {"net_arch": [32, 32]}}
    return QAM("FlowPolicy", env=None, offline_dataset=dataset, **{**arguments, **variant})


def train_in_one_go(folder: Path, dataset: str, name: str) -> QAM:
    model = make(dataset, **VARIANTS[name])
    model.set_logger(configure(str(folder / name), ["csv"]))
    return model.pretrain(gradient_steps=N_STEPS + N_MORE_STEPS, log_interval=1)


def train_stop_and_go_on(folder: Path, dataset: str, name: str) -> None:
    model = make(dataset, **VARIANTS[name])
    if model.replicas.is_first:
        logger = configure(str(folder / name), ["csv"])
        model.set_logger(logger)
    model.pretrain(gradient_steps=1000, log_interval=1, callback=StopsAndDraws())
    model.save(folder / f"{name}_stopped.zip")
    # The others must not read what is not written yet
    th.distributed.barrier()
    model = QAM.load(folder / f"{name}_stopped.zip")
    if model.replicas.is_first:
        model.set_logger(logger)
    model.pretrain(gradient_steps=N_MORE_STEPS, log_interval=1, reset_num_timesteps=False)
    model.save(folder / f"{name}.zip")
    (folder / f"{name}_{model.replicas.rank}_of_{model.replicas.n_processes}.txt").write_text(
        repr({key: float(value.double().abs().sum()) for key, value in model.policy.state_dict().items()})
    )


def error_of(**arguments: Any) -> str:
    try:
        make(**arguments)
    except ValueError as error:
        return str(error)
    return "none"


class Normalized(nn.Sequential):
    """An activation with a batch normalization in it."""

    def __init__(self) -> None:
        super().__init__(nn.ReLU(), nn.BatchNorm1d(32))


def main(folder: Path, dataset: str, *names: str) -> None:
    # Registered first, called last: a group that is still there then aborts the process now and then
    left = folder / f"left_{os.environ['RANK']}.txt"
    atexit.register(lambda: left.write_text(str(not th.distributed.is_initialized())))
    for name in names:
        train_stop_and_go_on(folder, dataset, name)
    # What one of the processes starts is none of them, and waits for nobody
    if th.distributed.get_rank() == 0:
        load = f"from sb3_qam import QAM; print(QAM.load({str(folder / f'{names[0]}.zip')!r}).replicas.n_processes)"
        child = subprocess.run([sys.executable, "-c", load], check=True, stdout=subprocess.PIPE, text=True, timeout=120)
        assert child.stdout.split() == ["1"], child.stdout
    # Online, the first process goes on alone, and cannot come back
    model = make(dataset)
    model.set_env(gym.make("Pendulum-v1"))
    model.learn(3)
    n_timesteps = model.num_timesteps
    errors = [
        error_of(dataset=dataset, batch_size=61),
        error_of(dataset=dataset, policy_kwargs={"net_arch": [32], "activation_fn": Normalized}),
    ]
    try:
        model.pretrain(gradient_steps=1, reset_num_timesteps=False)
    except ValueError as error:
        errors.append(str(error))
    (folder / f"errors_{model.replicas.rank}.txt").write_text("\n".join([*errors, str(n_timesteps)]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
