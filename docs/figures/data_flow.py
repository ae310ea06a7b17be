"""Draws what flows where in training: ``python docs/figures/data_flow.py``."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from two_modes import read_arguments, save

# Text of each box, its center, and its color
DATA, ALGORITHM, FUNCTIONS, NETWORKS = "#dbe9f6", "#fde3c8", "#e3f1de", "#eadff0"
BOXES = {
    "minari": ("Minari dataset\nOGBench file", (0.0, 3.3), DATA),
    "env": ("environment\n(VecEnv)", (0.0, 0.6), DATA),
    "offline": ("offline store\nchecked, scaled;\nmemory, files or GPU", (2.6, 3.3), DATA),
    "online": ("replay buffer\nh-step sequences", (2.6, 1.9), DATA),
    "train": ("QAM.train()\na batch of both,\none Adam step", (5.2, 2.55), ALGORITHM),
    "flows": ("flows\nflow-matching loss,\nsampling", (7.9, 3.4), FUNCTIONS),
    "adjoint": ("adjoint_matching\nSDE, lean adjoint,\nmatching loss", (7.9, 1.9), FUNCTIONS),
    "networks": ("FlowPolicy\nbehavior flow,\npolicy flow,\ncritics, head", (10.6, 2.55), NETWORKS),
    "head": ("sample_actions()\npredict()", (5.2, 0.6), NETWORKS),
}
ARROWS = [
    ("minari", "offline", "", 0.0),
    ("env", "online", "", 0.0),
    ("offline", "train", "", 0.0),
    ("online", "train", "", 0.0),
    ("train", "flows", "", 0.0),
    ("train", "adjoint", "", 0.0),
    ("flows", "networks", "", 0.0),
    ("adjoint", "networks", "", 0.0),
    ("networks", "head", "", -0.25),
    ("head", "env", "actions, chunk by chunk", 0.0),
]
WIDTH, HEIGHT = 2.0, 0.95


def draw_box(axes: Axes, text: str, center: tuple[float, float], color: str) -> None:
    """
    :param axes: Where to draw
    :param text: What stands in it; the first line is its name
    :param center: Where it is
    :param color: Of its inside
    """
    x, y = center
    height = HEIGHT + 0.2 * max(0, text.count("\n") - 1)
    corner = (x - WIDTH / 2, y - height / 2)
    box = FancyBboxPatch(corner, WIDTH, height, "round,pad=0,rounding_size=0.12", facecolor=color, edgecolor="0.4")
    axes.add_patch(box)
    axes.text(x, y, text, ha="center", va="center", fontsize=10, linespacing=1.3)


def draw_arrow(axes: Axes, start: str, end: str, label: str, bend: float) -> None:
    """
    :param axes: Where to draw
    :param start: Name of the box it comes from
    :param end: Name of the box it goes to
    :param label: What flows there
    :param bend: How far it leaves the straight line
    """
    (x0, y0), (x1, y1) = BOXES[start][1], BOXES[end][1]
    side = WIDTH / 2 if x1 > x0 else -WIDTH / 2
    begin = (x0, y0 - 0.68) if bend else (x0 + side, y0)
    style = {"arrowstyle": "-|>", "color": "0.25", "connectionstyle": f"arc3,rad={bend}"}
    axes.annotate("", (x1 - side, y1), begin, arrowprops=style)
    if label:
        axes.text((x0 + x1) / 2, (y0 + y1) / 2 + 0.12, label, ha="center", fontsize=8.5, color="0.25")


def main() -> None:
    """Draw the picture."""
    arguments = read_arguments(__doc__)
    # Text stays text, for search and for screen readers
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sb3-qam", "font.family": "sans-serif"}):
        figure, axes = plt.subplots(figsize=(12, 4.2), layout="constrained")
        for text, center, color in BOXES.values():
            draw_box(axes, text, center, color)
        for arrow in ARROWS:
            draw_arrow(axes, *arrow)
        axes.set(xlim=(-1.2, 11.8), ylim=(0, 4.3), aspect="equal")
        axes.axis("off")
        save(figure, arguments.output / "data_flow.svg")


if __name__ == "__main__":
    main()
