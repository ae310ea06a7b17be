"""The algorithms give the numbers that the published implementation gave."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from sb3_qam.networks.cpu_kernels import disabled
from tests.reference import TOLERANCE, compare, main

DATA = Path(__file__).parent / "data"
RECORDED = sorted(DATA.glob("*.npz"))


@pytest.mark.parametrize("evaluation", ["fast", "plain"])
@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_every_quantity_agrees_with_the_recorded_one(path: Path, evaluation: str):
    with disabled() if evaluation == "plain" else nullcontext():
        errors = compare(path)
    expected = {"critic_loss", "bc_loss", "gradients"}
    if path.stem.startswith("fql"):
        expected |= {"fql_actor_loss", "fql_distill_loss"}
    elif path.stem.startswith(("ifql", "rebrac")):
        expected |= {"value_loss" if path.stem.startswith("ifql") else "actor_loss"}
    elif path.stem.startswith("bam"):
        expected |= {"adjoint_loss", "control_cost"}
    else:
        expected |= {"adjoint_loss", "xs", "adjoints"}
    assert expected <= set(errors)
    assert any(quantity.startswith("parameters after") for quantity in errors)
    assert max(errors.values()) <= TOLERANCE, errors


def test_command_exits_with_zero_only_where_numbers_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with np.load(RECORDED[0]) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["update1/batch/rewards"] = arrays["update1/batch/rewards"] + 1e-3
    np.savez(tmp_path / "other.npz", **arrays)

    assert main([str(RECORDED[0])]) == 0
    assert "agrees" in capsys.readouterr().out
    assert main([str(RECORDED[0]), str(tmp_path / "other.npz")]) == 1
    assert "DISAGREES" in capsys.readouterr().out


def test_command_says_what_it_cannot_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path / "missing.npz")]) == 1
    assert "cannot be run: FileNotFoundError" in capsys.readouterr().out
