"""The hyper-parameters of the published runs on OGBench.

Sources: the released configurations of QAM, arXiv 2601.14234 (repository ColinQiyangLi/qam), and of TRQAM,
arXiv 2605.27079 (repository yonghdong/trqam).
"""

from dataclasses import dataclass
from typing import Any

VARIANTS = ("QAM", "QAM-E", "QAM-F", "BAM", "TRQAM")


@dataclass(frozen=True)
class Preset:
    """
    One published run.

    :param kwargs: Arguments of QAM
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
class _Domain:
    """
    What was tuned on a domain in the released configurations, and what the domain decides.
    """

    qam: float  # inverse temperature
    qam_edit: tuple[float, float]  # inverse temperature, edit scale
    qam_fql: tuple[float, float]  # inverse temperature, distillation coefficient
    bam: float = 10.0  # inverse temperature
    kl_budget: float = 1.0  # arXiv 2605.27079: tuned; 1.0 is the default of its code
    gamma: float = 0.99
    pessimism: float = 0.5
    chunk_size: int = 5
    sparse_rewards: bool = False
    dataset_transitions: int | None = None


_MAZE: dict[str, Any] = {"chunk_size": 1}
_LONG_MAZE: dict[str, Any] = {**_MAZE, "gamma": 0.995}
_HUMANOID: dict[str, Any] = {**_LONG_MAZE, "pessimism": 0.0}
_LARGE: dict[str, Any] = {"dataset_transitions": 100_000_000}

DOMAINS: dict[str, _Domain] = {
    "puzzle-3x3-play": _Domain(3.0, (1.0, 0.1), (3.0, 0.0), sparse_rewards=True),
    "scene-play": _Domain(1.0, (1.0, 0.0), (1.0, 300.0), sparse_rewards=True),
    "cube-double-play": _Domain(1.0, (1.0, 0.0), (1.0, 0.0)),
    "cube-triple-play": _Domain(3.0, (3.0, 0.1), (10.0, 300.0), bam=30.0, kl_budget=0.5),
    "cube-quadruple-play": _Domain(1.0, (3.0, 0.1), (0.3, 30.0), **_LARGE),
    "puzzle-4x4-play": _Domain(30.0, (0.1, 0.9), (3.0, 3.0), bam=30.0, sparse_rewards=True, **_LARGE),
    "antmaze-large-navigate": _Domain(10.0, (1.0, 0.1), (3.0, 30.0), bam=30.0, **_MAZE),
    "antmaze-giant-navigate": _Domain(3.0, (10.0, 0.1), (3.0, 30.0), bam=30.0, **_LONG_MAZE),
    "humanoidmaze-medium-navigate": _Domain(3.0, (3.0, 0.1), (1.0, 30.0), **_HUMANOID),
    "humanoidmaze-large-navigate": _Domain(3.0, (3.0, 0.1), (0.3, 30.0), bam=30.0, **_HUMANOID),
}


def preset(task: str, variant: str = "QAM") -> Preset:
    """
    The hyper-parameters of a published run:

    .. code-block:: python

        published = preset("cube-triple-play", "QAM-E")
        model = QAM("FlowPolicy", env, offline_dataset=dataset, **published.kwargs)
        model.learn(published.online_steps)

    :param task: One of DOMAINS, or the id of a dataset or single task that begins with one
    :param variant: One of VARIANTS. Where the best scale of edits or coefficient of distillation was 0, QAM-E and
        QAM-F are plain QAM
    :return: The run
    :raises ValueError: if nothing is published for the task, or the variant is unknown
    """
    name = next((name for name in DOMAINS if f"{task}-".startswith(f"{name}-")), None)
    if name is None:
        raise ValueError(f"Nothing is published for '{task}': expected an id that begins with {', '.join(DOMAINS)}.")
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got '{variant}'.")
    domain = DOMAINS[name]
    kwargs: dict[str, Any] = {
        # Common to all runs (both papers)
        "learning_rate": 3e-4,
        "batch_size": 256,
        "tau": 0.005,
        "gamma": domain.gamma,
        "learning_starts": 5000,
        "offline_steps": 1_000_000,
        "flow_steps": 10,
        "pessimism": domain.pessimism,
        "chunk_size": domain.chunk_size,
        "policy_kwargs": {"net_arch": [512] * 4, "n_critics": 10},
        **_variant_kwargs(domain, variant),
    }
    if variant == "TRQAM":
        is_humanoid = name.startswith("humanoidmaze")
        kwargs |= {"gamma": 0.999 if is_humanoid else 0.995, "pessimism": 0.0 if is_humanoid else 0.5}
        if (domain.dataset_transitions or 0) >= 10_000_000:
            kwargs["policy_kwargs"] = {"net_arch": [1024] * 4, "n_critics": 10, "flow_layer_norm": True}
    return Preset(
        kwargs=kwargs,
        online_steps=500_000,
        bc_steps=300_000 if variant == "TRQAM" else 0,
        sparse_rewards=domain.sparse_rewards,
        dataset_transitions=domain.dataset_transitions,
    )


def _variant_kwargs(domain: _Domain, variant: str) -> dict[str, Any]:
    """
    :return: The arguments that make the variant
    """
    entropy_coef, edit_scale = domain.qam_edit
    fql_temperature, distill_coef = domain.qam_fql
    by_variant: dict[str, dict[str, Any]] = {
        "QAM": {"inverse_temperature": domain.qam},
        "QAM-E": {"inverse_temperature": entropy_coef, "edit_scale": edit_scale},
        "QAM-F": {"inverse_temperature": fql_temperature, "distill_coef": distill_coef},
        "BAM": {"inverse_temperature": domain.bam, "adjoint": "bptt"},
        "TRQAM": {"kl_budget": domain.kl_budget},
    }
    return by_variant[variant]
