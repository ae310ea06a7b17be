"""The hyper-parameters of the published runs on OGBench; what was tuned for each variant is in ``variants.py``."""

import copy
from dataclasses import dataclass
from typing import Any

from sb3_qam.variants import PAPER_NETWORKS, VARIANTS


@dataclass(frozen=True)
class Preset:
    """
    One published run.

    :param kwargs: Arguments of the algorithm
    :param online_steps: Steps of ``learn()`` after the offline phase
    :param bc_steps: Gradient steps of ``pretrain(objective="bc")`` before the offline phase
    :param sparse_rewards: Whether the run replaces OGBench's reward by -1 until the whole task is solved, then 0
    :param dataset_transitions: Size of the dataset where it is not the one of OGBench's usual name, else ``None``
    """

    kwargs: dict[str, Any]
    online_steps: int
    bc_steps: int
    sparse_rewards: bool
    dataset_transitions: int | None


@dataclass(frozen=True)
class Domain:
    """
    What the published runs of all variants have in common on a domain.

    :param chunk_size: Number of actions in a chunk
    :param gamma: Discount factor
    :param pessimism: How many standard deviations of the critics are taken off the target value
    :param sparse_rewards: As in :class:`Preset`
    :param dataset_transitions: As in :class:`Preset`
    """

    chunk_size: int = 5
    gamma: float = 0.99
    pessimism: float = 0.5
    sparse_rewards: bool = False
    dataset_transitions: int | None = None


DOMAINS: dict[str, Domain] = {
    "puzzle-3x3-play": Domain(sparse_rewards=True),
    "scene-play": Domain(sparse_rewards=True),
    "cube-double-play": Domain(),
    "cube-triple-play": Domain(),
    "cube-quadruple-play": Domain(dataset_transitions=100_000_000),
    "puzzle-4x4-play": Domain(sparse_rewards=True, dataset_transitions=100_000_000),
    "antmaze-large-navigate": Domain(chunk_size=1),
    "antmaze-giant-navigate": Domain(chunk_size=1, gamma=0.995),
    "humanoidmaze-medium-navigate": Domain(chunk_size=1, gamma=0.995, pessimism=0.0),
    "humanoidmaze-large-navigate": Domain(chunk_size=1, gamma=0.995, pessimism=0.0),
}


def preset(task: str, variant: str = "QAM") -> Preset:
    """
    The hyper-parameters of a published run:

    .. code-block:: python

        published = preset("cube-triple-play", "QAM-E")
        model = QAM("FlowPolicy", env, offline_dataset=dataset, **published.kwargs)
        model.learn(published.online_steps)

    :param task: One of DOMAINS, or the id of a dataset or single task that begins with one
    :param variant: Name of a variant, in the papers (``"QAM-E"``) or on the command line (``"qam_edit"``)
    :return: The run
    :raises ValueError: if nothing is published for the task, or the variant is unknown
    """
    name = next((name for name in DOMAINS if f"{task}-".startswith(f"{name}-")), None)
    if name is None:
        raise ValueError(f"Nothing is published for '{task}': expected an id that begins with {', '.join(DOMAINS)}.")
    chosen = next((each for key, each in VARIANTS.items() if variant in (key, each.title)), None)
    if chosen is None:
        titles = ", ".join(each.title for each in VARIANTS.values())
        raise ValueError(f"variant must be one of {titles}, got '{variant}'.")
    domain, number = DOMAINS[name], list(DOMAINS).index(name)
    kwargs: dict[str, Any] = {
        # Common to all runs (of all papers)
        "learning_rate": 3e-4,
        "batch_size": 256,
        "tau": 0.005,
        "gamma": domain.gamma,
        "learning_starts": 5000,
        "offline_steps": 1_000_000,
        # Where there is a flow
        **({"flow_steps": 10} if hasattr(chosen.algorithm, "flow_steps") else {}),
        "pessimism": domain.pessimism,
        "chunk_size": domain.chunk_size,
        "policy_kwargs": PAPER_NETWORKS,
        **chosen.defaults,
        **{argument: values[number] for argument, values in chosen.tuned.items()},
    }
    return Preset(
        bc_steps=kwargs.pop("bc_steps", 0),
        dataset_transitions=kwargs.pop("dataset_transitions", domain.dataset_transitions),
        # The caller may change them
        kwargs=copy.deepcopy(kwargs),
        online_steps=500_000,
        sparse_rewards=domain.sparse_rewards,
    )
