"""The numbers of the suites beside this file: from runs to a CSV file, from the CSV file to a table and curves.

``python benchmarks/claims/report.py --runs benchmark/offline ...`` writes ``results.csv``, one row for each evaluation
of each finished run, in place of those of the suites that are named by their folders. Then, and without ``--runs``, it
prints a table of what is in the file (success in percent after the last updates or steps, mean over seeds with the 95%
interval of a bootstrap, and each seed) and draws the curves as ``docs/images/claims.png``. Dashed lines are published
means after as many updates (``published.csv``): of networks of 4x512 and 10 critics, on OGBench's own data.

``--expect UPDATES.json`` prints how long ``published.yml`` takes, from the output of ``python benchmarks/updates.py
--device cuda --sizes paper --compare cuda_graph=True --json UPDATES.json``.
"""

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from sb3_qam.results.runs import read_runs
from sb3_qam.results.scores import Estimate, estimate, mean, title_of
from sb3_qam.suite import read_suite

HERE = Path(__file__).parent
RESULTS, PUBLISHED = HERE / "results.csv", HERE / "published.csv"
PICTURE = HERE.parents[1] / "docs" / "images" / "claims.png"
COLUMNS = ("suite", "algorithm", "seed", "steps", "success_percent")
# What the published failures are called there
PUBLISHED_NAMES = {"few_steps": "QAM-E (T=3)", "weak": "QAM-E (0.1x tau)", "strong": "QAM-E (10x tau)"}
# Runs of offline.yml that were repeated for online ones to go on from
REPEATED = "offline_again"
# By suite and algorithm, then by seed: steps and success in percent of each evaluation
Curves = dict[tuple[str, str], dict[int, list[tuple[int, float]]]]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of one of the CSV files, none if it is not there."""
    if not path.is_file():
        return []
    with path.open() as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """The CSV file of the results."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def rows_of_suite(folder: Path, seen: dict[tuple[str, str, int], Path]) -> list[dict[str, str]]:
    """
    :param folder: That of a suite
    :param seen: Folders of the runs that are read, by suite, algorithm and seed; it takes those of this one
    :return: A row for each evaluation of its finished runs
    :raises FileNotFoundError: if there are no runs
    :raises ValueError: if two of them are one curve of the page
    """
    suite, rows = folder.resolve().name, list[dict[str, str]]()
    runs, left_out = read_runs([folder])
    reasons = [(each.folder, each.reason) for each in left_out]
    for run in runs:
        if not run.is_finished or "success" not in run.values:
            reasons.append((run.folder, "it says no successes" if run.is_finished else "it has not finished"))
            continue
        other = seen.setdefault((suite, run.algorithm, run.seed), run.folder)
        if other != run.folder:
            raise ValueError(
                f"{other} and {run.folder} are both {run.algorithm} with seed {run.seed}: expected one task, and each "
                "seed once. Move one of them away."
            )
        for step, success in zip(run.steps, run.values["success"], strict=True):
            values = (suite, run.algorithm, run.seed, int(step), f"{100 * success:.1f}")
            rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
    for left, reason in reasons:
        print(f"Left out: {left}: {reason}")
    if not rows:
        print(f"Nothing of {suite} has finished: the rows that are there stay.")
    return rows


def replace_suites(rows: list[dict[str, str]], folders: list[Path]) -> list[dict[str, str]]:
    """Rows with those of some suites' folders in place of what they had of these suites."""
    seen: dict[tuple[str, str, int], Path] = {}
    read = [row for folder in folders for row in rows_of_suite(folder, seen)]
    suites = {row["suite"] for row in read}
    if "offline" in suites:
        # The repeats were of the runs whose rows these replace
        suites.add(REPEATED)
    rows = [row for row in rows if row["suite"] not in suites] + read
    return sorted(rows, key=lambda row: (row["suite"], row["algorithm"], int(row["seed"]), int(row["steps"])))


def as_curves(rows: list[dict[str, str]]) -> Curves:
    """What is in the rows. Curves of online runs begin with the end of the offline run that they go on from."""
    curves: Curves = defaultdict(lambda: defaultdict(list))
    for row in rows:
        curve = curves[row["suite"], row["algorithm"]][int(row["seed"])]
        curve.append((int(row["steps"]), float(row["success_percent"])))
    for (suite, algorithm), of_seeds in curves.items():
        for seed, curve in of_seeds.items():
            of_suites = (curves.get((each, algorithm), {}) for each in (REPEATED, "offline"))
            before = next((each[seed] for each in of_suites if seed in each), None)
            if suite.startswith("online") and before:
                curve.insert(0, (0, before[-1][1]))
    return curves


def published_mean(suite: str, algorithm: str, steps: int) -> float | None:
    """What was published of a method after as many updates, if anything was. Online runs have other steps before."""
    name = PUBLISHED_NAMES.get(suite, title_of(algorithm))
    means = {(row["method"], int(row["updates"])): float(row["mean_percent"]) for row in read_rows(PUBLISHED)}
    return None if name is None or suite.startswith("online") else means.get((name, steps))


def over_seeds(of_seeds: dict[int, list[tuple[int, float]]]) -> tuple[list[int], Estimate]:
    """Steps at which all seeds were evaluated, and the mean over the seeds."""
    steps = sorted(set.intersection(*({step for step, _ in curve} for curve in of_seeds.values())))
    if not steps:
        raise ValueError(f"There is no step at which all of the seeds {sorted(of_seeds)} of a method were evaluated.")
    values = np.array([[dict(curve)[step] for curve in of_seeds.values()] for step in steps])
    return steps, estimate([values], mean)


def make_table(curves: Curves) -> str:
    """The table as Markdown."""
    lines = [
        "| suite | algorithm | steps | success in % | seeds | published |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (suite, algorithm), of_seeds in sorted(curves.items()):
        steps, found = over_seeds(of_seeds)
        interval = "" if found.low is None or found.high is None else f" [{found.low[-1]:.0f}, {found.high[-1]:.0f}]"
        seeds = ", ".join(f"{dict(of_seeds[seed])[steps[-1]]:.0f}" for seed in sorted(of_seeds))
        published = published_mean(suite, algorithm, steps[-1])
        cells = (
            f"{steps[-1]:,}",
            f"{found.value[-1]:.0f}{interval}",
            seeds,
            "" if published is None else f"{published:.0f}",
        )
        lines.append(f"| {suite} | {algorithm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(curves: Curves) -> None:
    """
    One panel for each suite, in which a color stands for the same algorithm as in others, and one for all those of the
    folder ``sizes`` and for the failures, which have one algorithm each.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shared = dict.fromkeys((path.stem for path in HERE.glob("sizes/*.yml")), "sizes")
    shared |= dict.fromkeys(PUBLISHED_NAMES, "failures")
    by_title = defaultdict(list)
    for suite, algorithm in sorted(curves):
        if suite != REPEATED:
            by_title[shared.get(suite, suite)].append((suite, algorithm))
    algorithms = sorted({algorithm for _, algorithm in curves})
    n_columns = min(len(by_title), 3)
    n_rows = -(-len(by_title) // n_columns)
    figure, panels = plt.subplots(
        n_rows, n_columns, figsize=(4.5 * n_columns, 4 * n_rows), squeeze=False, layout="constrained"
    )
    for panel in panels.flat[len(by_title) :]:
        panel.remove()
    for (title, shown), panel in zip(sorted(by_title.items()), panels.flat, strict=False):
        for number, (suite, algorithm) in enumerate(shown):
            steps, found = over_seeds(curves[suite, algorithm])
            label = f"{algorithm}, {suite}" if suite in shared else algorithm
            color = f"C{number if suite in shared else algorithms.index(algorithm)}"
            thousands = np.array(steps) / 1000
            panel.plot(thousands, found.value, marker="o", markersize=3, color=color, label=label)
            if found.low is not None and found.high is not None:
                panel.fill_between(thousands, found.low, found.high, color=color, alpha=0.2, linewidth=0)
            published = published_mean(suite, algorithm, steps[-1])
            if published is not None:
                panel.axhline(published, color=color, linestyle="--", linewidth=1)
        steps_are = "environment steps" if title.startswith("online") else "updates"
        panel.set(title=title, xlabel=f"thousand {steps_are}", ylabel="success in %", ylim=(-3, 103))
        panel.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    figure.savefig(PICTURE, dpi=110)


def print_expected(path: Path) -> None:
    """Hours of updates of the suite at the published size, from the measured rates."""
    try:
        found = json.loads(path.read_text())
        rates = {row["arguments"]: row["updates_per_s"] for row in found if row["size"] == "paper"}
        by_graph = {is_graphed: rates[name] for is_graphed, name in {False: "qam", True: "cuda_graph=True"}.items()}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} has no rates of QAM with and without graphs: expected what benchmarks/updates.py --sizes paper "
            f"--compare cuda_graph=True --json {path} writes."
        ) from error
    total = 0.0
    for run in read_suite(HERE / "published.yml", [0]):
        steps, rate = run.hyperparams["offline_steps"], by_graph[run.hyperparams.get("cuda_graph", False)]
        total += steps / rate / 3600
        print(f"{run.algorithm}: {steps:,} updates at {rate:.1f} a second: {steps / rate / 3600:.2f} hours")
    print(f"One seed: {total:.2f} hours if all take as long as QAM; evaluations, on the CPU, come on top")


def main() -> None:
    """Write, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="folders of suites")
    parser.add_argument("--expect", type=Path, help="output of benchmarks/updates.py")
    arguments = parser.parse_args()
    try:
        if arguments.expect:
            print_expected(arguments.expect)
            return
        rows = replace_suites(read_rows(RESULTS), arguments.runs)
        if not rows:
            print("There are no results yet: give the folders of suites, --runs benchmark/offline.")
            return
        curves = as_curves(rows)
        print(make_table(curves))
        if arguments.runs:
            write_rows(RESULTS, rows)
        draw(curves)
    except (OSError, ValueError) as error:
        raise SystemExit(f"Error: {error}") from None


if __name__ == "__main__":
    main()
