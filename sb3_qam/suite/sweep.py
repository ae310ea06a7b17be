"""Several values of one argument, each trained from the same clone."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_qam.common.evaluation import evaluate
from sb3_qam.datasets.sources import OfflineDataset, storable, with_absolute_folders
from sb3_qam.qam import QAM
from sb3_qam.utils.atomic import atomic_write
from sb3_qam.utils.checks import check_in_range
from sb3_qam.utils.names import plain

# What can be swept, and what it takes the place of
ARGUMENTS: dict[str, dict[str, Any]] = {
    "inverse_temperature": {"kl_budget": None},
    "kl_budget": {"inverse_temperature": None},
}


def sweep(
    clone: str | Path,
    argument: str,
    values: Sequence[float],
    env: VecEnv,
    gradient_steps: int,
    folder: str | Path,
    n_eval_episodes: int = 50,
    offline_dataset: OfflineDataset | None = None,
    device: str = "auto",
) -> Iterator[dict[str, Any]]:
    """
    Train one policy for each value, offline, from the same saved model, and evaluate it from the same starts with
    deterministic actions. Each is saved as ``ARGUMENT=VALUE.zip``, beside its row as JSON; those that are there are
    not trained again.

    :param clone: Path of a model after ``pretrain(objective="bc")``; of any other, its behavior flow is taken, and its
        critics are new
    :param argument: ``"inverse_temperature"`` or ``"kl_budget"``
    :param values: What to give it
    :param env: Where to evaluate
    :param gradient_steps: Number of updates of each policy
    :param folder: Where to write
    :param n_eval_episodes: Number of episodes of each evaluation
    :param offline_dataset: Needed if the model was trained on a dataset object without an id
    :param device: PyTorch device
    :return: One row for each value, as soon as it is there: the value, ``mean_return``, ``std_return``,
        ``mean_length``, ``success``, ``episodes``, and ``path_kl``, the divergence from the clone in nats per step
    :raises FileNotFoundError: if there is no such model
    :raises ValueError: if the argument or a value is not one that can be swept, the model is not one of QAM's, or the
        folder has the results of other settings
    """
    if argument not in ARGUMENTS:
        raise ValueError(f"argument must be one of {', '.join(ARGUMENTS)}, got '{argument}'.")
    if not values or len({*values}) < len(values):
        raise ValueError(f"values must be different numbers such as [1, 3, 10], got {list(values)}.")
    for value in values:
        check_in_range(argument, value, 0, low_excluded=argument == "kl_budget")
    spec = env.get_attr("spec")[0]
    path = Path(clone) if Path(clone).is_file() else Path(f"{clone}.zip")
    settings = {
        "clone": str(path.resolve()),
        # One that was trained again is another clone
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "env": plain([spec.id, spec.max_episode_steps, spec.kwargs, env.num_envs]) if spec is not None else None,
        "normalization": _digest_of(unwrap_vec_normalize(env)),
        "data": storable(with_absolute_folders(offline_dataset)),
        "gradient_steps": gradient_steps,
        "episodes": n_eval_episodes,
    }
    kwargs: dict[str, Any] = {"device": device, **ARGUMENTS[argument]}
    if offline_dataset is not None:
        kwargs["offline_dataset"] = offline_dataset
    return (_row(argument, value, env, Path(folder), settings, kwargs) for value in values)


def _digest_of(normalization: VecNormalize | None) -> str | None:
    """:return: What the statistics are, in a few letters"""
    if normalization is None or not normalization.norm_obs:
        return None
    statistics = normalization.obs_rms
    parts = statistics if isinstance(statistics, dict) else {"": statistics}
    values = {key: [part.mean.tolist(), part.var.tolist()] for key, part in sorted(parts.items())}
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


@contextmanager
def _unchanged(normalization: VecNormalize | None) -> Iterator[None]:
    """Each value sees the same statistics, those of the clone's training."""
    if normalization is None:
        yield
        return
    training, normalization.training = normalization.training, False
    try:
        yield
    finally:
        normalization.training = training


def _row(
    argument: str, value: float, env: VecEnv, folder: Path, settings: dict[str, Any], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """:return: The row of one value, for which a policy is trained unless it is there already"""
    path = folder / f"{argument}={value if float(f'{value:g}') != value else f'{value:g}'}.json"
    if path.is_file():
        done = json.loads(path.read_text())
        if done["settings"] != settings:
            raise ValueError(f"{path} has other settings ({done['settings']}): choose another folder.")
        return done["row"]
    model = QAM.load(settings["clone"], **{**kwargs, argument: value})
    if model._n_updates > model._n_bc_steps_done:
        # Its critics have learned with a temperature: begin with new ones
        set_random_seed(0)
        model._setup_model()
    model.load_behavior(settings["clone"])
    # The environment of training is not needed, but what it did to observations is
    model._vec_normalize_env = unwrap_vec_normalize(env)
    with _unchanged(model._vec_normalize_env):
        model.pretrain(gradient_steps=settings["gradient_steps"])
        model.save(path.with_suffix(".zip"))
        env.seed(0)
        # At inverse temperature 0 there is no policy beside the clone
        path_kl = float(model.flow_diagnostics(256).get("path_kl", 0.0))
        row = {argument: value, **evaluate(model, env, settings["episodes"]).summary(), "path_kl": path_kl}
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps({"settings": settings, "row": row}, indent=1))
    return row
