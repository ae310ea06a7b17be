"""Learning in bfloat16 and in float32: ``python benchmarks/precision.py [--seeds 0 1 2 3 4] [--json FILE]``.

On the data and with the settings of the quickstart, trains QAM offline in both precisions from the same seeds, and
evaluates on the same 50 starts along the way. Printed are means and standard deviations over the seeds.

Takes about two minutes for each seed and precision on one CPU core.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from sb3_qam.common.precision import PRECISIONS

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import quickstart

STEPS = [500, 1000, 2000, 4000, 8000]


def measure(seed: int, precision: str) -> list[dict[str, Any]]:
    """Success and mean episode length at each point of training."""
    model = quickstart.make_model(seed)
    model.precision = precision
    starts = quickstart.make_starts()
    rows = []
    for steps in STEPS:
        model.pretrain(gradient_steps=steps - model.num_timesteps, reset_num_timesteps=False)
        result = quickstart.evaluate(model, starts)
        rows.append(
            {"seed": seed, "precision": precision, "steps": steps} | {k: result[k] for k in ("success", "length")}
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    quickstart.collect_data()
    rows = [row for seed in arguments.seeds for precision in PRECISIONS for row in measure(seed, precision)]
    print("| gradient steps | " + " | ".join(PRECISIONS) + " |")
    print("| --- |" + " --- |" * len(PRECISIONS))
    for steps in STEPS:
        cells = []
        for precision in PRECISIONS:
            chosen = [row for row in rows if (row["steps"], row["precision"]) == (steps, precision)]
            success, length = (np.array([row[key] for row in chosen]) for key in ("success", "length"))
            cells.append(f"{success.mean():.2f} ± {success.std():.2f} / {length.mean():.0f} ± {length.std():.0f}")
        print(f"| {steps} | " + " | ".join(cells) + " |")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
