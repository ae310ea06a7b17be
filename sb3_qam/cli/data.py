"""``sb3-qam data``."""

from contextlib import suppress
from importlib.util import find_spec
from inspect import signature
from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer

from sb3_qam.cli.errors import on_one_line
from sb3_qam.cli.models import algorithm_of, attach_statistics, load_model
from sb3_qam.cli.options import ENV_HELP, Algo, GymPackages, VecNormalizeFile
from sb3_qam.datasets.describe import describe as describe_dataset
from sb3_qam.environments import find_environment
from sb3_qam.recording.collect import collect as collect_dataset
from sb3_qam.recording.formats import find_importer
from sb3_qam.recording.ogbench import import_ogbench
from sb3_qam.recording.oracles import ogbench_oracle
from sb3_qam.recording.play import record_ogbench, success_shares

# Of the importers' arguments, those that options have other names for
OPTIONS = {"action_space": "--action-bounds", "observation_keys": "--key"}

app = typer.Typer(no_args_is_help=True, help="Datasets: what is in them, and where they come from.")


@app.command()
def describe(
    dataset: Annotated[list[str], typer.Argument(help="Id or folder of a Minari dataset; several are taken together.")],
    picture: Annotated[Path | None, typer.Option(help="Write histograms to this file.")] = None,
) -> None:
    """
    Print episodes, steps, returns, success and actions of a dataset.

    Example: sb3-qam data describe D4RL/pointmaze/umaze-v2 --picture umaze.png
    """
    with on_one_line():
        description = describe_dataset(dataset)
        typer.echo(description)
        if picture is not None:
            description.draw(picture)
            typer.echo(f"Histograms: {picture}")


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="A file of arrays (npz, or D4RL's or d3rlpy's HDF5), a robomimic file, the folder of a LeRobot "
            "dataset, or the id of one of OGBench's single tasks."
        ),
    ],
    dataset_id: Annotated[
        str | None, typer.Argument(help="Id of the dataset, such as mine/robot-v0; ogbench/TASK by default.")
    ] = None,
    path: Annotated[Path | None, typer.Option(help="OGBench's npz file; downloaded by default.")] = None,
    action_bounds: Annotated[
        str | None,
        typer.Option(help="Bounds of the actions: LOW,HIGH, or data for their range in the data. By default -1,1."),
    ] = None,
    observation_keys: Annotated[
        list[str] | None, typer.Option("--key", help="Only these observations; repeatable. robomimic and LeRobot.")
    ] = None,
    flatten_obs: Annotated[
        bool, typer.Option("--flatten-obs", help="Join all observations to a vector. robomimic and LeRobot.")
    ] = False,
    mask: Annotated[str | None, typer.Option(help="Only the demonstrations in this filter key. robomimic.")] = None,
    reward: Annotated[
        str | None,
        typer.Option(help="next.reward, next.success or another feature; or sparse: 1 at the end. LeRobot."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Only episodes of this task, in its words. LeRobot.")] = None,
    image_size: Annotated[
        tuple[int, int] | None, typer.Option(help="Height and width to scale images to. LeRobot.")
    ] = None,
) -> None:
    """
    Write data of another format into the local Minari cache.

    Example: sb3-qam data import arrays.npz mine/arrays-v0

    Example: sb3-qam data import cube-double-play-singletask-task1-v0
    """
    with on_one_line(RuntimeError):
        options = {
            "path": path,
            "action_space": None if action_bounds is None else _bounds(action_bounds),
            "observation_keys": observation_keys,
            "flatten_obs": flatten_obs,
            "mask": mask,
            "reward": reward,
            "task": task,
            "image_size": image_size,
        }
        given = {key: value for key, value in options.items() if value}
        importer = find_importer(source)
        known = {"path"} if importer is import_ogbench else set(signature(importer).parameters) - {"path"}
        if unfit := [OPTIONS.get(key, "--" + key.replace("_", "-")) for key in given if key not in known]:
            raise ValueError(f"{source} takes no {', '.join(unfit)}: see sb3-qam data import --help.")
        if importer is import_ogbench:
            dataset = import_ogbench(source, path, dataset_id)
        elif dataset_id is None:
            raise ValueError(f"What is it to be called? Give an id: sb3-qam data import {source} mine/data-v0.")
        else:
            dataset = importer(source, dataset_id, **given)
        typer.echo(f"{dataset.id}: {dataset.total_episodes} episodes, {dataset.total_steps} steps")


def _bounds(text: str) -> Any:
    if text == "data":
        return text
    with suppress(ValueError):
        low, high = map(float, text.split(","))
        if -inf < low < high < inf:
            return low, high
    raise ValueError(f"--action-bounds takes finite numbers LOW,HIGH with LOW < HIGH, or data, got {text!r}.")


@app.command()
def collect(
    env: Annotated[str, typer.Argument(help=ENV_HELP)],
    dataset_id: Annotated[str, typer.Argument(help="Id of the dataset, such as mine/pendulum-v0.")],
    episodes: Annotated[int, typer.Option("--episodes", "-n", min=1, help="Number of episodes in the dataset.")] = 100,
    model: Annotated[Path | None, typer.Option(help="A saved model that acts; random actions without.")] = None,
    algo: Algo = None,
    vec_normalize: VecNormalizeFile = None,
    gym_packages: GymPackages = None,
    oracle: Annotated[bool, typer.Option("--oracle", help="Act with OGBench's scripted oracle.")] = False,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Act deterministically.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Other seeds give other episodes.")] = 0,
    max_episode_steps: Annotated[
        int | None,
        typer.Option(min=1, help="End episodes after this many steps; by default where the environment does."),
    ] = None,
) -> None:
    """
    Record episodes as a Minari dataset. The same command resumes where it was interrupted.

    Example: sb3-qam data collect PointMaze_UMaze-v3 mine/maze-v0 -n 500 --model sac.zip --algo sac

    Example: sb3-qam data collect my_module:MyEnv-v0 mine/env-v0
    """
    with on_one_line(RuntimeError):
        if model is not None and oracle:
            raise ValueError("--model and --oracle exclude each other: only one can act.")
        env = find_environment(env, gym_packages or [])
        policy: Any = None
        if model is not None:
            policy = load_model(algorithm_of(model, algo)[1], model, device="cpu")
            attach_statistics(policy, model, vec_normalize)
        dataset = collect_dataset(
            ogbench_oracle(env) if oracle else policy,
            env,
            dataset_id,
            episodes,
            n_processes=processes,
            seed=seed,
            deterministic=deterministic,
            max_episode_steps=max_episode_steps,
            progress_bar=_has_progress_bar(),
        )
        typer.echo(f"{dataset.id}: {dataset.total_episodes} episodes, {dataset.total_steps} steps")


@app.command()
def record(
    env: Annotated[str, typer.Argument(help="Id of one of OGBench's cube, scene and puzzle environments.")],
    path: Annotated[Path, typer.Argument(help="The npz file to write.")],
    episodes: Annotated[int, typer.Option("--episodes", "-n", min=1, help="Number of episodes.")] = 1000,
    processes: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Other seeds give other episodes.")] = 0,
    max_episode_steps: Annotated[int, typer.Option(min=2, help="Rows in each episode, one more than steps.")] = 1001,
) -> None:
    """
    Record data as OGBench's "play" data sets were, by its oracles, in its format. The same command resumes where it was
    interrupted.

    Example: sb3-qam data record scene-v0 scene-play-v0.npz --processes 2
    """
    with on_one_line(RuntimeError):
        record_ogbench(
            env,
            path,
            episodes,
            n_processes=processes,
            seed=seed,
            max_episode_steps=max_episode_steps,
            progress_bar=_has_progress_bar(),
        )
        typer.echo(f"{path}: {episodes} episodes, {episodes * (max_episode_steps - 1)} transitions, solved in")
        for task, share in success_shares(env, path).items():
            typer.echo(f"  {task}: {share:.2%}")


def _has_progress_bar() -> bool:
    return find_spec("rich") is not None and find_spec("tqdm") is not None
