"""``sb3-qam eval``."""

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import typer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_qam import QAM, PolicyValue, fitted_q_evaluation
from sb3_qam.cli.errors import on_one_line
from sb3_qam.cli.models import algorithm_of, attach_statistics, check_normalized, load_model, load_statistics
from sb3_qam.cli.options import ENV_HELP, Algo, EnsembleDecay, GymPackages, ReplanEvery, VecNormalizeFile
from sb3_qam.common.chunks import ChunkedPolicy
from sb3_qam.common.evaluation import evaluate as evaluate_model
from sb3_qam.common.offline_to_online import OfflineToOnlineAlgorithm
from sb3_qam.datasets.sources import OfflineDataset, open_datasets
from sb3_qam.environments import find_environment, register_environments
from sb3_qam.recording.scripted import check_fits
from sb3_qam.results.runs import read_settings, settings_folder


def evaluate(
    model: Annotated[Path, typer.Argument(help="A saved model, from RL Zoo or save().")],
    env: Annotated[
        str | None,
        typer.Option(help=ENV_HELP + " By default that of the RL Zoo run, or of the model's dataset."),
    ] = None,
    episodes: Annotated[int, typer.Option("--episodes", "-n", min=1, help="Number of episodes for each row.")] = 20,
    n_envs: Annotated[int, typer.Option(min=1, help="Number of parallel environments, which share the episodes.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the environments and of sampled actions.")] = 0,
    baseline: Annotated[
        str | None, typer.Option(help="bc: also evaluate the model's behavior flow, a clone of its data.")
    ] = None,
    offline: Annotated[
        str | None,
        typer.Option(
            help="Id or folder of a dataset: estimate the discounted value from it alone, by fitted Q evaluation."
        ),
    ] = None,
    gradient_steps: Annotated[int, typer.Option(min=1, help="Gradient steps of fitted Q evaluation.")] = 10_000,
    algo: Algo = None,
    gym_packages: GymPackages = None,
    vec_normalize: VecNormalizeFile = None,
    replan_every: ReplanEvery = None,
    ensemble_decay: EnsembleDecay = None,
    device: Annotated[str, typer.Option(help="PyTorch device (cpu, cuda, ...).")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """
    Print return, length and success of a model on its environment, with deterministic and with sampled actions.

    Examples:
    sb3-qam eval logs/qam/PointMaze_UMaze-v3_1/best_model.zip -n 50 --baseline bc
    sb3-qam eval logs/qam/PointMaze_UMaze-v3_1/best_model.zip --offline D4RL/pointmaze/umaze-v2
    """
    with on_one_line():
        algo, algorithm = algorithm_of(model, algo)
        if baseline not in (None, "bc") or (baseline and not issubclass(algorithm, QAM)):
            raise ValueError(f"--baseline must be bc, the behavior flow of a QAM model, got '{baseline}' for '{algo}'.")
        if offline is not None and not issubclass(algorithm, OfflineToOnlineAlgorithm):
            raise ValueError(f"--offline needs an algorithm of this package, got '{algo}'.")
        if offline is not None and env is not None:
            raise ValueError("--offline and --env exclude each other: the value is estimated without an environment.")
        # What libraries print on the way is not the result
        with contextlib.redirect_stdout(sys.stderr):
            models: dict[str, Any] = {"": load_model(algorithm, model, device=device, seed=seed)}
            if baseline is not None:
                clone = load_model(QAM, model, device=device, seed=seed)
                clone.load_behavior(model)
                models["bc "] = clone
            for each in models.values():
                if isinstance(each.policy, ChunkedPolicy):
                    each.policy.replan_every, each.policy.ensemble_decay = replan_every, ensemble_decay
                elif (replan_every, ensemble_decay) != (None, None):
                    raise ValueError(f"--replan-every and --ensemble-decay are for chunks, which '{algo}' has not.")
            summaries: dict[str, dict[str, Any]] = {}
            data = None
            if offline is not None:
                # Read once for all rows
                for each in models.values():
                    attach_statistics(each, model, vec_normalize)
                data = models[""].make_offline_buffer(_wrapped_as_of_run(model, offline))
            for prefix, each in models.items():
                for name, deterministic in {"deterministic": True, "sampled": False}.items():
                    # The same starts and noise in each row
                    each.set_random_seed(seed)
                    if data is not None:
                        value = fitted_q_evaluation(each, data, gradient_steps, deterministic, seed=seed)
                        summaries[prefix + name] = asdict(value)
                        continue
                    vec_env, env_id = make_env(model, env, models[""], n_envs, seed, gym_packages, vec_normalize)
                    found = evaluate_model(each, vec_env, episodes, deterministic)
                    summaries[prefix + name] = found.summary()
                    vec_env.close()
    if as_json:
        rows = {name.replace(" ", "_"): summary for name, summary in summaries.items()}
        source = {"env": env_id} if offline is None else {"dataset": offline}
        typer.echo(json.dumps({"model": str(model), **source, **rows}))
        return
    if offline is not None:
        typer.echo(f"Fitted Q evaluation on {offline}, {gradient_steps} gradient steps each")
        for name, row in summaries.items():
            typer.echo(f"{name:16} {PolicyValue(**row)}")
        return
    typer.echo(f"{env_id}, {episodes} episodes each")
    typer.echo(f"{'':16} {'return':>22} {'length':>8} {'success':>8}")
    for name, row in summaries.items():
        success = "-" if row["success"] is None else f"{row['success']:.1%}"
        spread = f"{row['mean_return']:.4g} +/- {row['std_return']:.4g}"
        typer.echo(f"{name:16} {spread:>22} {row['mean_length']:8.4g} {success:>8}")


def _wrapped_as_of_run(path: Path, source: str) -> OfflineDataset:
    """:return: The data as the environment of the model's run would have given it"""
    settings = settings_folder(path.parent)
    if settings is None:
        return source
    from sb3_qam.zoo.wrappers import wrap_as_environment

    return wrap_as_environment(source, read_settings(settings)[1])


def make_env(
    path: Path,
    env_id: str | None,
    model: BaseAlgorithm,
    n_envs: int,
    seed: int,
    gym_packages: list[str] | None = None,
    vec_normalize: Path | None = None,
) -> tuple[VecEnv, str]:
    """
    :param path: Path of the saved model
    :param env_id: Id of the environment, by default that of RL Zoo's run or of the model's dataset
    :param model: The model
    :param n_envs: Number of environments
    :param seed: Their seed
    :param gym_packages: Modules that register environments, besides those of the run
    :param vec_normalize: Statistics of ``VecNormalize``, by default those of the run
    :return: Environments as the model knows them, with the wrappers of its run, and their id
    :raises ValueError: if the environment is not known, the model's spaces are others, or statistics are missing
    """
    register_environments()
    packages, settings = list(gym_packages or []), settings_folder(path.parent)
    args, config = ({}, {}) if settings is None else read_settings(settings)
    packages += args.get("gym_packages") or []
    dataset = getattr(model, "offline_dataset", None)
    if env_id is None and args:
        env_id = args.get("env")
    elif env_id is None and dataset is not None:
        spec = open_datasets(dataset)[0].env_spec
        # The specification itself is code that the dataset brings; an id that is registered here is not
        env_id = spec.id if spec is not None and spec.id in gym.registry else None
    if env_id is None:
        raise ValueError(f"The environment of {path} is not known: pass --env ID.")
    env_id = find_environment(env_id, packages)
    if args:
        from sb3_qam.zoo import create_test_env

        # Of another environment only what wraps it: arguments belong to the one that they were given to
        env_kwargs = args.get("env_kwargs") or config.get("env_kwargs") if env_id == args.get("env") else None
        # By the statistics of the run, unless others are given
        normalize = vec_normalize is None and bool(config.get("normalize"))
        try:
            env = create_test_env(
                env_id,
                n_envs,
                stats_path=str(settings),
                seed=seed,
                should_render=False,
                hyperparams={**config, "normalize": normalize, "normalize_kwargs": {}},
                env_kwargs=env_kwargs,
            )
        except AssertionError as error:
            # Statistics are of other spaces
            raise ValueError(f"{env_id} does not fit the run in {settings}: {error}") from error
    else:
        env = make_vec_env(env_id, n_envs, seed)
    if vec_normalize is not None:
        env = load_statistics(vec_normalize, env)
    check_normalized(model, path, unwrap_vec_normalize(env))
    check_fits(model, env, f"--env {env_id} is not what {path} was trained in.")
    return env, env_id
