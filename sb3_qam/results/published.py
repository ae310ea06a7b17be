"""Published success rates of OGBench's tasks, which are shown beside those of runs."""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sb3_qam.qam.variants import VARIANTS
from sb3_qam.results.scores import Task

FILE = Path(__file__).with_name("published.csv")
OFFLINE_STEPS, ONLINE_STEPS = 1_000_000, 500_000
SOURCE = "arXiv 2601.14234: mean over 12 seeds with 50 episodes each"


@dataclass(frozen=True)
class PublishedScore:
    """
    Success rates in [0, 1] of one method on one task.

    :param method: Its name in the paper
    :param offline: After a million offline updates
    :param standard_error: Of that, over the seeds
    :param online: After half a million environment steps more
    """

    method: str
    offline: float
    standard_error: float
    online: float


@cache
def published_scores() -> dict[str, list[PublishedScore]]:
    """
    :return: What is known, by tasks, which have the names of their data
    """
    by_task: dict[str, list[PublishedScore]] = {}
    with FILE.open() as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            numbers = (float(row[key]) / 100 for key in ("offline", "offline_standard_error", "online"))
            by_task.setdefault(row["task"], []).append(PublishedScore(row["method"], *numbers))
    return by_task


def published_of(task: Task) -> list[PublishedScore]:
    """
    :param task: A task
    :return: What has been published, if it can be compared with what is shown
    """
    return published_scores().get(task.name, []) if task.metric_name == "success" else []


def title_of(algorithm: str) -> str | None:
    """
    :param algorithm: Name of an algorithm on the command line
    :return: Its name in the papers, if it is one of ours
    """
    return VARIANTS[algorithm].title if algorithm in VARIANTS else None
