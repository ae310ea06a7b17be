"""Several processes train what one process trains."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import minari
import numpy as np
import pytest

from sb3_qam import QAM
from sb3_qam.common.replicas import Replicas
from tests.data_parallel import N_MORE_STEPS, N_STEPS, VARIANTS, train_in_one_go

# Float32, summed in another order: 4e-7 of the largest magnitude was seen
TOLERANCE = 5e-6


def torchrun(n_processes: int, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n_processes)]
    return subprocess.run(
        [*command, *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_log(folder: Path) -> dict[str, np.ndarray]:
    with (folder / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0] if name.startswith("train/")}


def assert_close(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    assert found.shape == expected.shape, name
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize(
    ("n_processes", "names"),
    [
        (2, ["qam", "trust_region"]),
        pytest.param(2, list(VARIANTS), marks=pytest.mark.slow),
        pytest.param(3, list(VARIANTS), marks=pytest.mark.slow),
    ],
)
def test_the_numbers_are_those_of_one_process(
    n_processes: int, names: list[str], tmp_path: Path, pendulum_dataset: minari.MinariDataset
):
    dataset = pendulum_dataset.spec.dataset_id
    together = torchrun(n_processes, "-m", "tests.data_parallel", str(tmp_path), dataset, *names)
    assert together.returncode == 0, together.stdout
    assert [(tmp_path / f"left_{rank}.txt").read_text() for rank in range(n_processes)] == ["True"] * n_processes
    for name in names:
        alone = train_in_one_go(tmp_path / "alone", dataset, name)
        expected, found = read_log(tmp_path / "alone" / name), read_log(tmp_path / name)
        assert expected.keys() == found.keys()
        assert {"train/critic_loss", "train/bc_loss", "train/adjoint_loss", "train/grad_norm"} < found.keys()
        for quantity in expected:
            assert len(found[quantity]) == N_STEPS + N_MORE_STEPS
            assert_close(found[quantity], expected[quantity], f"{name}: {quantity}")
        loaded = QAM.load(tmp_path / f"{name}.zip", device="cpu")
        parameters = loaded.policy.state_dict()
        for parameter, value in alone.policy.state_dict().items():
            assert_close(parameters[parameter].numpy(), value.numpy(), f"{name}: {parameter}")
        for dual in ("kl_lambda", "kl_average"):
            expected_dual = getattr(alone.trust_region, dual).numpy()
            assert_close(getattr(loaded.trust_region, dual).numpy(), expected_dual, f"{name}: {dual}")
        # In one process it goes on where several have left it
        for model in (loaded, alone):
            model.pretrain(gradient_steps=1, reset_num_timesteps=False)
        assert_close(loaded.policy.state_dict()[parameter].numpy(), value.numpy(), f"{name}: {parameter} afterwards")
        of_ranks = [(tmp_path / f"{name}_{rank}_of_{n_processes}.txt").read_text() for rank in range(n_processes)]
        assert len(set(of_ranks)) == 1

    for rank in range(n_processes):
        batch_size, normalization, unequal, steps = (tmp_path / f"errors_{rank}.txt").read_text().splitlines()
        assert f"batch_size=61 cannot be divided among {n_processes} processes: use a multiple" in batch_size
        assert "is a BatchNorm1d" in normalization
        assert "'timesteps': 3, 'online transitions': 3}, {'updates': 0, 'timesteps': 0" in unequal
        assert int(steps) == (3 if rank == 0 else 0)
    assert f"the first of {n_processes} processes learns alone" in together.stdout


@pytest.mark.slow
def test_rl_zoo_writes_once(tmp_path: Path, pendulum_dataset: minari.MinariDataset):
    command = ["-m", "sb3_qam.cli", "train", "--algo", "qam", "--env", "Pendulum-v1", "-n", "10", "--seed", "1"]
    command += ["--eval-freq", "10", "--eval-episodes", "1", "--num-threads", "1", "--device", "cpu", "--hyperparams"]
    command += [f"offline_dataset:{pendulum_dataset.spec.dataset_id!r}", "offline_steps:10", "learning_starts:0"]
    command += ["policy_kwargs:{'net_arch': [16]}", "batch_size:32"]
    parameters = []
    for n_processes in (1, 2):
        logs = tmp_path / str(n_processes)
        result = torchrun(n_processes, *command, "-f", str(logs))
        assert result.returncode == 0, result.stdout
        assert result.stdout.count("Saving to") == 1
        (folder,) = (logs / "qam").iterdir()
        assert {"best_model.zip", "evaluations.npz", "Pendulum-v1.zip"} < {path.name for path in folder.iterdir()}
        model = QAM.load(folder / "Pendulum-v1.zip", device="cpu")
        assert model.num_timesteps == 20
        parameters.append(model.policy.state_dict())
    alone, together = parameters
    for name, expected in alone.items():
        assert_close(together[name].numpy(), expected.numpy(), name)
    result = torchrun(2, *command, "-optimize")
    assert result.returncode != 0
    assert "A search cannot be divided among 2 processes" in result.stdout


def test_rows_of_a_batch():
    class Second(Replicas):
        rank, n_processes = 1, 3

    assert Second().own_rows(12) == slice(4, 8)
    with pytest.raises(ValueError, match=r"batch_size=256 cannot be divided among 3 processes: .* such as 258\."):
        Second().own_rows(256)
    assert Replicas().own_rows(5) == slice(0, 5)
