"""Log both phases to Weights & Biases: ``python examples/weights_and_biases.py``.

Needs ``pip install "sb3-qam[extra]" wandb``.

It needs no account and no network: ``WANDB_MODE=offline`` is set unless you set it. ``wandb sync`` uploads the run
later.

What it prints (20 seconds on one CPU core):

    1000 gradient steps and 400 environment steps in one history
    last checkpoint: step 1400
    upload with: wandb sync wandb/latest-run
"""

import os
from pathlib import Path

import torch as th
import wandb
from stable_baselines3.common.env_util import make_vec_env
from wandb.integration.sb3 import WandbCallback

from sb3_qam import QAM
from sb3_qam.recording import collect

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
ENV_ID = "Pendulum-v1"


def main() -> None:
    th.set_num_threads(1)
    dataset = collect(None, ENV_ID, "examples/pendulum-random-v0", n_episodes=10)
    # TensorBoard's log is copied to Weights & Biases
    with wandb.init(project="sb3-qam", sync_tensorboard=True) as run:
        model = QAM(
            "FlowPolicy",
            make_vec_env(ENV_ID),
            offline_dataset=dataset,
            offline_steps=1_000,
            batch_size=64,
            policy_kwargs={"net_arch": [64, 64]},
            tensorboard_log=str(Path(run.dir) / "tensorboard"),
            seed=0,
        )
        # Hyper-parameters, and a checkpoint of the model every 500 steps
        model.learn(400, callback=WandbCallback(model_save_path="wandb_model", model_save_freq=500), log_interval=1)
        print(f"1000 gradient steps and {model.num_timesteps - 1000} environment steps in one history")
    print(f"last checkpoint: step {QAM.load('wandb_model/model').num_timesteps}")
    print("upload with: wandb sync wandb/latest-run")


if __name__ == "__main__":
    main()
