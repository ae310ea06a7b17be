"""Write the files that later versions must load: ``python -m tests.saved_models``

Models of the current version, a replay buffer, and the actions that the models predict, in ``tests/data``, from where
``tests/contract/test_saved_files.py`` loads those of all versions. To be run once before each release, and never for a
version that has been released.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.env_util import make_vec_env

from sb3_qam import QAM, __version__

FOLDER = Path(__file__).parent / "data"
OBSERVATIONS = [[1.0, 0.0, 0.0], [0.6, 0.8, -2.0], [-1.0, 0.0, 7.5], [0.0, -1.0, 3.0]]
# What was added to the networks, the file and the replay buffer by arguments
VARIANTS: dict[str, dict[str, Any]] = {
    "": {"n_steps": 3},
    "_variants": {"chunk_size": 2, "edit_scale": 0.2, "kl_budget": 0.1, "adjoint": "scalar", "value_penalty": 0.3},
}


def expected_actions(model: QAM) -> list[Any]:
    """
    :param model: A model of Pendulum
    :return: Its deterministic actions at OBSERVATIONS, those of a whole chunk
    """
    state, actions = None, []
    for _ in range(model.chunk_size):
        action, state = model.predict(np.array(OBSERVATIONS, np.float32), state, deterministic=True)
        actions.append(action.tolist())
    return actions


def write(folder: Path) -> None:
    """
    :param folder: Where to write the files
    """
    for variant, kwargs in VARIANTS.items():
        name = f"qam_{__version__.replace('.', '_')}{variant}"
        model = QAM(
            "FlowPolicy",
            make_vec_env("Pendulum-v1", seed=0),
            batch_size=16,
            buffer_size=40,
            learning_starts=10,
            flow_steps=5,
            policy_kwargs={"net_arch": [16, 16]},
            seed=0,
            device="cpu",
            **kwargs,
        )
        model.learn(61)
        model.save(folder / name)
        model.save_replay_buffer(folder / name)
        (folder / f"{name}.json").write_text(json.dumps(expected_actions(model)) + "\n")


if __name__ == "__main__":
    write(FOLDER)
