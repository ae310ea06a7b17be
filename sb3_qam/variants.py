"""The registry of algorithms and variants, for presets, RL Zoo and charts: names, defaults, search, published values.

What a variant of QAM does is in ``qam/``: how it acts in ``heads.py``, what the policy flow learns from in
``adjoint_matching.py``, its temperature in ``temperature.py``.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import sb3_contrib
import stable_baselines3
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_qam.common.offline_to_online import OfflineToOnlineAlgorithm
from sb3_qam.ifql import IFQL
from sb3_qam.qam import QAM
from sb3_qam.qam.bc import BC
from sb3_qam.rebrac import ReBRAC
from sb3_qam.utils.names import closest

# The tuned temperature grows as the returns shrink: the search covers as many orders of magnitude as rewards do
TEMPERATURES = (0.03, 100.0)


@dataclass(frozen=True)
class Variant:
    """
    One algorithm under a name of its own.

    :param title: Its name in the papers, which ``results/published.csv`` has too
    :param defaults: The arguments that make it, beside the algorithm's own defaults
    :param search: Arguments that RL Zoo's search draws besides those that all share, each with the ends of its range on
        a logarithmic scale
    :param tuned: Arguments of the published runs on OGBench, each with one value for each of ``presets.DOMAINS``
    :param algorithm: Its class
    :param policy: Name of its policy
    :param zoo: RL Zoo's own settings for it
    """

    title: str
    defaults: dict[str, Any] = field(default_factory=dict)
    search: dict[str, tuple[float, float]] = field(default_factory=dict)
    tuned: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    algorithm: type[OfflineToOnlineAlgorithm] = QAM
    policy: str = "FlowPolicy"
    zoo: dict[str, Any] = field(default_factory=dict)


PAPER_NETWORKS: dict[str, Any] = {"net_arch": [512] * 4, "n_critics": 10}
# On cube-triple, cube-quadruple, puzzle-4x4 and antmaze-giant, with their larger datasets
_LARGE_NETWORKS: dict[str, Any] = {"net_arch": [1024] * 4, "n_critics": 10, "flow_layer_norm": True}
# What the published runs of TRQAM and SQAM share. The budget was tuned for each domain in tables that we could not
# read: 0.5 on cube-triple is sourced, 1.0 is the default of the released code
_TRUST_REGION_RUNS: dict[str, tuple[Any, ...]] = {
    "kl_budget": (1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    "gamma": (0.995,) * 8 + (0.999,) * 2,
    "pessimism": (0.5,) * 8 + (0.0,) * 2,
    "bc_steps": (300_000,) * 10,
    "policy_kwargs": (
        *(PAPER_NETWORKS,) * 3,
        *(_LARGE_NETWORKS,) * 3,
        *(PAPER_NETWORKS, _LARGE_NETWORKS),
        *(PAPER_NETWORKS,) * 2,
    ),
    "dataset_transitions": (*(None,) * 3, 10_000_000, 100_000_000, 10_000_000, None, 10_000_000, None, None),
}

# By their names on the command line. Tuned values are from the released configurations of QAM, arXiv 2601.14234
# (repository ColinQiyangLi/qam), and of TRQAM, arXiv 2605.27079 (repository yonghdong/trqam), and from SQAM,
# arXiv 2610.10437
VARIANTS: dict[str, Variant] = {
    "qam": Variant(
        "QAM",
        search={"inverse_temperature": TEMPERATURES},
        tuned={"inverse_temperature": (3.0, 1.0, 1.0, 3.0, 1.0, 30.0, 10.0, 3.0, 3.0, 3.0)},
    ),
    # Where the best edit scale or distillation coefficient was 0, these two are plain QAM
    "qam_edit": Variant(
        "QAM-E",
        defaults={"edit_scale": 0.1},
        search={"edit_scale": (0.03, 1.0), "inverse_temperature": TEMPERATURES},
        tuned={
            "inverse_temperature": (1.0, 1.0, 1.0, 3.0, 3.0, 0.1, 1.0, 10.0, 3.0, 3.0),
            "edit_scale": (0.1, 0.0, 0.0, 0.1, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1),
        },
    ),
    "qam_f": Variant(
        "QAM-F",
        defaults={"distill_coef": 30.0},
        search={"distill_coef": (0.3, 1000.0), "inverse_temperature": TEMPERATURES},
        tuned={
            "inverse_temperature": (3.0, 1.0, 1.0, 10.0, 0.3, 3.0, 3.0, 3.0, 1.0, 0.3),
            "distill_coef": (0.0, 300.0, 0.0, 300.0, 30.0, 3.0, 30.0, 30.0, 30.0, 30.0),
        },
    ),
    "bam": Variant(
        "BAM",
        defaults={"adjoint": "bptt"},
        search={"inverse_temperature": TEMPERATURES},
        tuned={"inverse_temperature": (10.0, 10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 30.0, 10.0, 30.0)},
    ),
    "trqam": Variant(
        "TRQAM", defaults={"kl_budget": 1.0}, search={"kl_budget": (0.03, 10.0)}, tuned=_TRUST_REGION_RUNS
    ),
    "sqam": Variant(
        "SQAM",
        defaults={"adjoint": "scalar", "kl_budget": 1.0, "value_penalty": 0.3},
        search={"kl_budget": (0.03, 10.0), "value_penalty": (0.03, 1.0)},
        tuned={**_TRUST_REGION_RUNS, "value_penalty": (0.3, 0.3, 0.0, *(0.3,) * 7)},
    ),
    # arXiv 2502.02538, whose authors clip no gradients; its coefficients are tuned by domain, this is one of them
    "fql": Variant(
        "FQL",
        defaults={"inverse_temperature": 0.0, "distill_coef": 300.0, "max_grad_norm": math.inf},
        search={"distill_coef": (0.3, 1000.0)},
    ),
    "bc": Variant("BC", algorithm=BC),
    # The baselines of QAM's paper, with what all its runs share. Expectile and number of samples are those of the
    # recorded run (tests/data), and so is the coefficient, which was tuned by domain in tables that we could not read
    "ifql": Variant("IFQL", algorithm=IFQL, search={"expectile": (0.5, 0.99)}),
    "rebrac": Variant(
        "ReBRAC",
        algorithm=ReBRAC,
        policy="ReBRACPolicy",
        search={"bc_coef": (0.001, 10.0)},
        # A deterministic actor explores by added noise: online as much as in its target
        zoo={"noise_type": "normal", "noise_std": 0.2},
    ),
}


def find_algorithm(name: str) -> tuple[str, type[BaseAlgorithm]]:
    """
    :param name: Name of an algorithm of SB3, sb3-contrib or this package; case, dashes and underscores do not matter
    :return: The name that RL Zoo has for it, and its class
    :raises ValueError: if there is none of that name
    """
    known: dict[str, type[BaseAlgorithm]] = {
        key.lower(): value
        for package in (stable_baselines3, sb3_contrib)
        for key, value in vars(package).items()
        if isinstance(value, type) and issubclass(value, BaseAlgorithm)
    }
    known |= {key: variant.algorithm for key, variant in VARIANTS.items()}
    by_letters = {_letters(key): key for key in known} | {_letters(each.title): key for key, each in VARIANTS.items()}
    by_letters |= {"ppolstm": "recurrentppo"}
    if _letters(name) not in by_letters:
        raise ValueError(
            f"There is no algorithm '{name}'{closest(name.lower(), known)} There are {', '.join(sorted(known))}."
        )
    key = by_letters[_letters(name)]
    return "ppo_lstm" if key == "recurrentppo" else key, known[key]


def _letters(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
