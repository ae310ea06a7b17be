"""Renders the clone and the trained policy of the quickstart side by side: ``python docs/figures/maze_gif.py``.

The models are those that ``python examples/quickstart.py`` leaves in ``./quickstart``; it takes MuJoCo's off-screen
renderer (``MUJOCO_GL=egl``).
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from PIL import Image, ImageDraw, ImageFont
from two_modes import read_arguments

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import quickstart
from sb3_qam import QAM

SIZE = 280
HEADING = 24
EVERY = 4  # environment steps between two frames
N_LAST = 8  # frames that the end of an episode stays
SECONDS_PER_FRAME = 0.06
FROM_ABOVE = {"distance": 7.0, "elevation": -90.0, "azimuth": 90.0, "lookat": np.zeros(3)}
# A start at one end of the maze, and a goal at the other
START, GOAL = (1, 1), (3, 1)


def load_models(quick: bool) -> tuple[QAM, QAM]:
    """
    :param quick: Whether untrained models will do
    :return: The clone of the data, and the policy that was trained on it
    :raises FileNotFoundError: if the quickstart has not been run here
    """
    if quick:
        policy = QAM("FlowPolicy", gym.make(quickstart.ENV_ID, **quickstart.ENV_KWARGS), buffer_size=1)
        return policy, policy
    path = quickstart.OUTPUT / "qam_offline.zip"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: run 'python examples/quickstart.py' in this folder first.")
    return QAM.load(path, inverse_temperature=0.0), QAM.load(path)


def episode(model: QAM, seed: int, n_steps: int) -> Iterator[Image.Image]:
    """
    :param model: Who acts
    :param seed: Of the positions within the cells
    :param n_steps: How many steps at most
    :return: Pictures, one every ``EVERY`` steps and one of the end
    """
    rendering = {"render_mode": "rgb_array", "width": SIZE, "height": SIZE}
    env = gym.make(quickstart.ENV_ID, **rendering, **quickstart.ENV_KWARGS)
    env.unwrapped.point_env.mujoco_renderer.default_cam_config = FROM_ABOVE
    options = {"reset_cell": np.array(START), "goal_cell": np.array(GOAL)}
    observation, _ = env.reset(seed=seed, options=options)
    th.manual_seed(seed)
    for step in range(n_steps):
        if step % EVERY == 0:
            yield Image.fromarray(env.render())
        action, _ = model.predict(observation, deterministic=False)
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            break
    yield Image.fromarray(env.render())
    env.close()


def side_by_side(pictures: dict[str, Image.Image]) -> Image.Image:
    """
    :param pictures: Of the same size, by heading
    :return: One picture
    """
    sheet = Image.new("RGB", (SIZE * len(pictures), SIZE + HEADING), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (heading, picture) in enumerate(pictures.items()):
        sheet.paste(picture, (number * SIZE, HEADING))
        draw.text(((number + 0.5) * SIZE, HEADING / 2), heading, "black", ImageFont.load_default(15), anchor="mm")
    return sheet


def main() -> None:
    """Render both, and write the GIF."""
    arguments = read_arguments(__doc__)
    clone, policy = load_models(arguments.quick)
    n_steps = 3 * EVERY if arguments.quick else 300
    frames: list[Image.Image] = []
    for seed in range(1 if arguments.quick else 2):
        ways = [list(episode(model, seed, n_steps)) for model in (clone, policy)]
        for k in range(max(map(len, ways)) + N_LAST):
            # The one that has arrived waits
            shown = [way[min(k, len(way) - 1)] for way in ways]
            headings = (
                f"clone of the data, step {min(k, len(ways[0]) - 1) * EVERY}",
                f"QAM, step {min(k, len(ways[1]) - 1) * EVERY}",
            )
            frames.append(side_by_side(dict(zip(headings, shown, strict=True))))
    path = arguments.output / "maze.gif"
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same colors for all frames: what does not move is stored once
    palette = frames[0].quantize(64)
    reduced = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    milliseconds = round(1000 * SECONDS_PER_FRAME)
    reduced[0].save(path, save_all=True, append_images=reduced[1:], duration=milliseconds, loop=0, optimize=True)
    print(f"{path}, {len(frames)} frames, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
