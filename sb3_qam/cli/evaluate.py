"""``sb3-qam eval``."""

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from sb3_qam.cli.errors import on_one_line

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

    from sb3_qam import QAM


def evaluate(
    model: Annotated[Path, typer.Argument(help="A saved model, of RL Zoo or by save().")],
    env: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Id of the environment, by default that of RL Zoo's run or of the model's dataset."),
    ] = None,
    episodes: Annotated[int, typer.Option("--episodes", "-n", min=1, help="Number of episodes.")] = 20,
    n_envs: Annotated[int, typer.Option(min=1, help="Number of environments, which share the episodes.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the environments and of stochastic actions.")] = 0,
    stochastic: Annotated[bool, typer.Option("--stochastic", help="Sample actions.")] = False,
    device: Annotated[str, typer.Option(help="PyTorch device (cpu, cuda, ...).")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """
    Print return, length and success of a model on its environment.

    Example: sb3-qam eval logs/qam/PointMaze_UMaze-v3_1/best_model.zip -n 50 --json
    """
    from sb3_qam import QAM
    from sb3_qam.common.evaluation import evaluate as evaluate_model

    with on_one_line():
        # What libraries print on the way is not the result
        with contextlib.redirect_stdout(sys.stderr):
            loaded = QAM.load(model, device=device, seed=seed)
            vec_env, env_id = _make_env(model, env, loaded, n_envs, seed)
        summary = evaluate_model(loaded, vec_env, episodes, deterministic=not stochastic).summary()
        vec_env.close()
    if as_json:
        typer.echo(json.dumps({"model": str(model), "env": env_id, **summary}))
        return
    typer.echo(f"{env_id}, {episodes} episodes")
    typer.echo(f"return   {summary['mean_return']:.4g} +/- {summary['std_return']:.4g}")
    typer.echo(f"length   {summary['mean_length']:.4g}")
    typer.echo("success  " + ("not said" if summary["success"] is None else f"{summary['success']:.1%}"))


def _make_env(path: Path, env_id: str | None, model: "QAM", n_envs: int, seed: int) -> tuple["VecEnv", str]:
    """
    :param path: Where the model comes from
    :param env_id: Id of the environment, if the user says it
    :param model: The model
    :param n_envs: Number of environments
    :param seed: Their seed
    :return: The environments as the model knows them, and their id
    :raises ValueError: if the environment is not known
    """
    from stable_baselines3.common.env_util import make_vec_env

    from sb3_qam.datasets.sources import recover_environment
    from sb3_qam.environments import register_environments

    register_environments()
    run = next(path.parent.glob("*/args.yml"), None)
    if env_id is None and run is not None:
        from sb3_qam.zoo.runs import make_env_of_run

        return make_env_of_run(run.parent, n_envs, seed)
    if env_id is not None:
        return make_vec_env(env_id, n_envs, seed), env_id
    if model.offline_dataset is None:
        raise ValueError(f"The environment of {path} is not known: pass --env ID.")
    spec = recover_environment(model.offline_dataset).spec
    assert spec is not None  # for mypy
    return make_vec_env(lambda: recover_environment(model.offline_dataset), n_envs, seed), spec.id
