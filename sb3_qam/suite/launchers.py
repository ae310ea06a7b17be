"""Where the runs of a suite take place."""

from collections.abc import Callable, Iterator
from pathlib import Path

from sb3_qam.suite.local import run_locally
from sb3_qam.suite.on_ray import run_on_ray
from sb3_qam.suite.resources import Resources
from sb3_qam.suite.runs import Run

# Takes what to do, the suite's folder and what there is to do it with; gives each run as it ends, and whether it has
# come to its end
Launcher = Callable[[list[Run], Path, Resources], Iterator[tuple[Run, bool]]]

LAUNCHERS: dict[str, Launcher] = {"local": run_locally, "ray": run_on_ray}
