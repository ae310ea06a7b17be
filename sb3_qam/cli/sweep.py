"""``sb3-qam sweep``."""

from pathlib import Path
from typing import Annotated

import typer

from sb3_qam.cli.errors import on_one_line
from sb3_qam.cli.evaluate import make_env
from sb3_qam.cli.models import load_model
from sb3_qam.cli.options import ENV_HELP, GymPackages, VecNormalizeFile
from sb3_qam.qam import QAM
from sb3_qam.suite import sweep as sweep_values


def sweep(
    model: Annotated[Path, typer.Argument(help="A saved QAM model, best after pretrain(objective='bc').")],
    inverse_temperature: Annotated[str | None, typer.Option(help="Values to try, such as 1,3,10.")] = None,
    kl_budget: Annotated[str | None, typer.Option(help="Values to try, such as 0.3,1,3.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Gradient steps for each policy.")] = 20_000,
    env: Annotated[str | None, typer.Option(help=ENV_HELP + " By default that of the data.")] = None,
    gym_packages: GymPackages = None,
    vec_normalize: VecNormalizeFile = None,
    episodes: Annotated[int, typer.Option("--episodes", "-n", min=1, help="Number of episodes per evaluation.")] = 50,
    n_envs: Annotated[int, typer.Option(min=1, help="Number of parallel environments, which share the episodes.")] = 1,
    folder: Annotated[Path, typer.Option(help="Folder for models and results.")] = Path("sweep"),
    device: Annotated[str, typer.Option(help="PyTorch device (cpu, cuda, ...).")] = "auto",
) -> None:
    """
    Train a policy for each temperature or budget from the same clone, on the model's dataset, and evaluate it. The same
    command resumes where it was interrupted.

    Example: sb3-qam sweep bc.zip --inverse-temperature 1,3,10 --steps 20000
    """
    with on_one_line():
        given = {"inverse_temperature": inverse_temperature, "kl_budget": kl_budget}
        chosen = {name: text for name, text in given.items() if text is not None}
        if len(chosen) != 1:
            raise ValueError("Give either --inverse-temperature or --kl-budget, with values such as 1,3,10.")
        ((argument, text),) = chosen.items()
        try:
            values = [float(value) for value in text.split(",")]
        except ValueError:
            raise ValueError(f"--{argument.replace('_', '-')} takes numbers such as 1,3,10, got '{text}'.") from None
        loaded = load_model(QAM, model, device=device)
        vec_env, env_id = make_env(model, env, loaded, n_envs, 0, gym_packages, vec_normalize)
        rows = sweep_values(model, argument, values, vec_env, steps, folder, episodes, device=device)
        typer.echo(f"{env_id}, {episodes} episodes each\n{argument:>20} {'return':>10} {'success':>8} {'path_kl':>8}")
        for row in rows:
            success = "-" if row["success"] is None else f"{row['success']:.1%}"
            typer.echo(f"{row[argument]:20g} {row['mean_return']:10.4g} {success:>8} {row['path_kl']:8.3g}")
        typer.echo(f"Models: {folder}")
