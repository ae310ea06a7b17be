"""Training that is killed, and resumes exactly where it was: ``python examples/resume.py``.

Needs ``pip install sb3-qam``.

A process trains, saves a checkpoint every 200 steps, and is killed in the middle (``kill -9``: nothing is cleaned up).
The same function, started again, resumes from the last checkpoint. The final parameters are, bit by bit, those of
training without the interruption.

What it prints (35 seconds on one CPU core):

    killed, the last checkpoint is of step 400
    resumes at step 400
    finished at step 1000
    finished at step 1000
    all 38 parameters are the same as without the interruption: True
"""

import multiprocessing
import shutil
import time
from pathlib import Path

import torch as th
from stable_baselines3.common.callbacks import CheckpointCallback

from sb3_qam import QAM
from sb3_qam.recording import collect

DATASET_ID = "examples/pendulum-random-v0"
GRADIENT_STEPS = 1_000
OUTPUT = Path("resume")


def steps(checkpoint: Path) -> int:
    """A CheckpointCallback names its files ``qam_200_steps.zip``."""
    return int(checkpoint.stem.split("_")[1])


def checkpoints(folder: Path) -> list[Path]:
    """Sorted by step. All are complete: QAM gives a file its name after it is written."""
    return sorted(folder.glob("qam_*_steps.zip"), key=steps)


def train(folder: Path) -> None:
    """Resume from the last checkpoint, or start if there is none."""
    th.set_num_threads(1)
    if found := checkpoints(folder):
        model = QAM.load(found[-1])
        print(f"resumes at step {model.num_timesteps}")
    else:
        model = QAM(
            "FlowPolicy",
            env=None,
            offline_dataset=DATASET_ID,
            batch_size=64,
            policy_kwargs={"net_arch": [64, 64]},
            seed=0,
        )
    callback = CheckpointCallback(save_freq=200, save_path=str(folder), name_prefix="qam")
    # A run that was killed after its last checkpoint only has to save the model
    if model.num_timesteps < GRADIENT_STEPS:
        left = GRADIENT_STEPS - model.num_timesteps
        model.pretrain(gradient_steps=left, callback=callback, reset_num_timesteps=False)
    model.save(folder / "final")
    print(f"finished at step {model.num_timesteps}")


def main() -> None:
    shutil.rmtree(OUTPUT, ignore_errors=True)
    collect(None, "Pendulum-v1", DATASET_ID, n_episodes=10)
    context = multiprocessing.get_context("spawn")

    process = context.Process(target=train, args=(OUTPUT / "killed",))
    process.start()
    while len(checkpoints(OUTPUT / "killed")) < 2:
        time.sleep(0.01)
    process.kill()
    process.join()
    print(f"killed, the last checkpoint is of step {steps(checkpoints(OUTPUT / 'killed')[-1])}", flush=True)

    for name in ("killed", "whole"):
        process = context.Process(target=train, args=(OUTPUT / name,))
        process.start()
        process.join()
    killed, whole = (QAM.load(OUTPUT / name / "final").policy.state_dict() for name in ("killed", "whole"))
    same = all(th.equal(killed[name], whole[name]) for name in whole)
    print(f"all {len(whole)} parameters are the same as without the interruption: {same}")


if __name__ == "__main__":
    main()
