"""The example of images: every step of it on the rendered maze, small, and, marked as slow, as it is written."""

import json
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest

from examples import images
from sb3_qam import QAM
from sb3_qam.networks import ImpalaCNN

TINY = {"--episodes": 3, "--bc-steps": 2, "--offline-steps": 2, "--online-steps": 3, "--starts": 2, "--processes": 2}


def run(folder: Path, **kwargs: Any) -> dict[str, Any]:
    arguments = {**TINY, "--output": folder, **kwargs}
    return images.main([str(part) for pair in arguments.items() for part in pair])


def test_from_a_dataset_of_images_to_a_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    summary = run(tmp_path / "out")
    output = capsys.readouterr().out
    dataset = minari.load_dataset(images.DATASET_ID)
    assert dataset.total_episodes == 3
    first = dataset[0].observations
    assert (first.dtype, first.shape[1:]) == (np.uint8, (64, 64, 3))
    # ball and goal are to be seen in every image
    red, green, _ = np.moveaxis(first.astype(int), 3, 0)
    for color in (green > red + 40, (red > 180) & (green < 60)):
        assert color.any(axis=(1, 2)).all()
    env = dataset.recover_environment()
    assert env.observation_space == dataset.observation_space
    assert env.action_space == dataset.action_space

    assert json.loads((tmp_path / "out" / "results.json").read_text()) == summary
    for name in ("bc", "QAM offline", "QAM online"):
        assert 0 <= summary["medians"][name]["success"] <= 1
        assert 1 <= summary["medians"][name]["length"] <= images.MAX_STEPS
        assert name in output
    assert (tmp_path / "out" / "camera.png").stat().st_size > 500

    model = QAM.load(tmp_path / "out" / "seed0_online", env=images.make_env())
    assert isinstance(model.policy.policy_flow.features_extractor, ImpalaCNN)
    assert model.num_timesteps == 2 + 2 + 3
    action, _ = model.predict(first[0], deterministic=True)
    assert env.action_space.contains(action)


def test_steps_hold_a_velocity_and_the_goal_ends_an_episode():
    env = images.make_env()
    # in the cell at the bottom on the left, with a long way to the right
    env.reset(seed=0, options={"reset_cell": np.array([3, 1])})
    env.step(np.array([0.25, 0.0]))
    before = env.unwrapped.data.qpos.copy()
    env.step(np.array([0.25, 0.0]))
    moved = env.unwrapped.data.qpos - before
    # a quarter of the largest speed, for 0.2 seconds
    assert moved[0] == pytest.approx(0.25 * images.MAX_SPEED * 0.01 * images.STEPS_HELD, rel=0.1)
    assert abs(moved[1]) < 0.01
    env.reset(seed=1)
    env.unwrapped.goal = env.unwrapped.data.qpos.copy()
    _, reward, terminated, truncated, info = env.step(np.zeros(2))
    assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)
    # and so does the limit
    env.reset(seed=2)
    length = 0
    truncated = terminated = False
    while not (truncated or terminated):
        *_, terminated, truncated, _ = env.step(np.zeros(2))
        length += 1
    assert (length, truncated) == (images.MAX_STEPS, True)


@pytest.mark.slow
def test_the_example_as_it_is_written_learns_from_images(tmp_path: Path):
    medians = images.main(["--output", str(tmp_path / "out")])["medians"]
    assert medians["QAM offline"]["success"] > medians["bc"]["success"] + 0.2
    assert medians["QAM offline"]["length"] < medians["bc"]["length"]
