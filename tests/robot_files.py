"""Files of robot data for tests and pages.

``data/lerobot.zip`` has three datasets that LeRobot itself has written, 0.3.3 (``v21``) and 0.4.4 (``v30`` with videos,
``v30_images`` without), and the frames that it was given. ``data/d3rlpy.h5`` was written by d3rlpy 2.8.1. robomimic's
files are written here as robomimic's documentation and scripts lay them out.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np

DATA = Path(__file__).parent / "data"
ENV_ARGS = {"env_name": "Lift", "type": 1, "env_kwargs": {"robots": "Panda"}}


def demonstrations() -> dict[int, dict[str, Any]]:
    """Three of 5, 4 and 6 steps, which succeed at their last step; arrays have 64-bit numbers, as robosuite's."""
    rng = np.random.default_rng(0)
    demos = {}
    for number, n in ((0, 5), (2, 4), (10, 6)):
        rows = {"object": rng.normal(size=(n + 1, 10)), "robot0_eef_pos": rng.normal(size=(n + 1, 3))}
        demos[number] = {
            "actions": rng.uniform(-1, 1, (n, 7)),
            "dones": np.arange(n) == n - 1,
            "next_obs": {key: values[1:] for key, values in rows.items()},
            "obs": {key: values[:-1] for key, values in rows.items()},
            "rewards": (np.arange(n) == n - 1).astype(float),
            "states": rng.normal(size=(n, 32)),
        }
    return demos


def write_robomimic(path: Path) -> dict[int, dict[str, Any]]:
    """Write the demonstrations, the last of which is not in the mask ``train``, and return them."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for number, demo in demonstrations().items():
            group = data.create_group(f"demo_{number}")
            for key, values in demo.items():
                for part, rows in values.items() if isinstance(values, dict) else [("", values)]:
                    dtype = np.int64 if key == "dones" else None
                    group.create_dataset(f"{key}/{part}".rstrip("/"), data=rows, dtype=dtype)
            group.attrs["num_samples"] = len(demo["actions"])
        data.attrs["total"] = 15
        data.attrs["env_args"] = json.dumps(ENV_ARGS)
        file["mask/train"] = np.array([b"demo_0", b"demo_2"])
    return demonstrations()


def unpack_lerobot(folder: Path) -> dict[str, np.ndarray]:
    """Unpack the datasets into a folder, and return the frames of their 3 episodes of 8, 6 and 7."""
    shutil.unpack_archive(DATA / "lerobot.zip", folder)
    with np.load(folder / "expected.npz") as file:
        return dict(file)
