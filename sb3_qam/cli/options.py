"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

ENV_HELP = (
    "Id of the environment, or MODULE:ID for one of your own, with the module (in this folder) that registers it."
)

Algo = Annotated[
    str | None,
    typer.Option(
        help="The model's algorithm: from SB3, sb3-contrib or this package; by default that of its RL Zoo run, or qam."
    ),
]
EnsembleDecay = Annotated[
    float | None, typer.Option(help="With chunks: average those that overlap as in ACT, such as 0.01.")
]
GymPackages = Annotated[
    list[str] | None, typer.Option(help="A module to import, which registers environments; may be repeated.")
]
ReplanEvery = Annotated[
    int | None, typer.Option(help="With chunks: plan a new one after this many actions; by default at its end.")
]
VecNormalizeFile = Annotated[
    Path | None,
    typer.Option(help="Statistics of the model's VecNormalize; by default those that RL Zoo saved beside it."),
]
