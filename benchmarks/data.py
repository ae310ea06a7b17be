"""What data costs: ``python benchmarks/data.py [--json FILE]``.

Writes Minari datasets of random numbers (observations of 28, actions of 5, episodes of 1,000 steps) to a temporary
folder, and prints, each the median of several runs that take turns in the same process,

* the time to load 1,000,000 transitions, over that of reading the same arrays with plain h5py,
* the time to draw a batch of 256 sequences of 5, over that of the NumPy fancy indexing that gathers the same numbers,
* the time to import arrays of 1,000,000 transitions, over that of writing them with h5py, episode by episode as Minari
  lays them out, and flat; and the memory that it takes beside the arrays,
* the resident memory of a process that trains on a memory-mapped store of 10,000,000 transitions, beside 100,000.

Takes about ten minutes and 4 GB of disk; ``--transitions 100000 --large 1000000`` is a quick look.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from timing import resident_megabytes, take_turns

from sb3_qam import QAM
from sb3_qam.common.buffers import OfflineBuffer
from sb3_qam.datasets.minari import read_episodes
from sb3_qam.recording import import_arrays
from sb3_qam.utils.atomic import sync

OBSERVATIONS, ACTIONS = spaces.Box(-np.inf, np.inf, (28,)), spaces.Box(-1.0, 1.0, (5,))
EPISODE_LENGTH = 1000
BATCH_SIZE, HORIZON = 256, 5
# What is said of memory is about the store: networks and updates are small here
UPDATES = 500
MEGABYTE = 2**20


def write_dataset(n_transitions: int) -> minari.MinariDataset:
    """A dataset of random numbers, written a hundred episodes at a time."""
    rng = np.random.default_rng(0)

    def episode() -> EpisodeBuffer:
        return EpisodeBuffer(
            observations=rng.normal(size=(EPISODE_LENGTH + 1, 28)).astype(np.float32),
            actions=rng.uniform(-1, 1, (EPISODE_LENGTH, 5)).astype(np.float32),
            rewards=rng.normal(size=EPISODE_LENGTH),
            terminations=np.zeros(EPISODE_LENGTH, bool),
            truncations=np.arange(EPISODE_LENGTH) == EPISODE_LENGTH - 1,
        )

    n_episodes = n_transitions // EPISODE_LENGTH
    dataset = None
    for start in range(0, n_episodes, 100):
        buffers = [episode() for _ in range(min(100, n_episodes - start))]
        if dataset is None:
            dataset = minari.create_dataset_from_buffers(
                f"benchmark/random{n_transitions}-v0",
                buffers,
                observation_space=OBSERVATIONS,
                action_space=ACTIONS,
                algorithm_name="random",
                author="benchmark",
                author_email="benchmark",
                code_permalink="benchmarks/data.py",
                description="Random numbers.",
            )
        else:
            dataset.update_dataset_from_buffer(buffers)
    assert dataset is not None
    return dataset


def read_plainly(dataset: minari.MinariDataset) -> list[np.ndarray]:
    """The same arrays, read episode by episode with h5py, and joined."""
    parts: list[list[np.ndarray]] = [[], [], [], []]
    with h5py.File(Path(dataset.spec.data_path) / "main_data.hdf5") as file:
        for number in range(dataset.total_episodes):
            group = file[f"episode_{number}"]
            for part, key in zip(parts, ("observations", "actions", "rewards", "terminations"), strict=True):
                part.append(group[key][()])
    return [np.concatenate(part) for part in parts]


def time_loading(dataset: minari.MinariDataset) -> dict[str, float]:
    """Seconds of loading, of h5py, and the ratio."""
    medians = take_turns({"load": lambda: read_episodes(dataset), "h5py": lambda: read_plainly(dataset)}, 5)
    return {**medians, "ratio": medians["load"] / medians["h5py"]}


def time_batches(dataset: minari.MinariDataset) -> dict[str, float]:
    """Seconds of 200 batches, of bare indexing, and the ratio."""
    episodes = read_episodes(dataset)
    buffer = OfflineBuffer(
        episodes, OBSERVATIONS, ACTIONS, device="cpu", n_steps=HORIZON, gamma=0.99, chunk_size=HORIZON
    )
    observations, actions = buffer.observations, buffer.actions
    assert isinstance(observations, np.ndarray)

    def draw() -> None:
        for _ in range(200):
            buffer.sample(BATCH_SIZE)

    def index() -> None:
        for _ in range(200):
            rows = np.random.randint(0, len(actions) - HORIZON, BATCH_SIZE)
            steps = rows[:, None] + np.arange(HORIZON)
            _ = observations[rows], observations[rows + HORIZON]
            _ = actions[steps], buffer.rewards[steps], buffer.terminations[steps]

    medians = take_turns({"batches": draw, "indexing": index}, 11)
    return {**medians, "ratio": medians["batches"] / medians["indexing"]}


def import_random(n_transitions: int) -> None:
    """Import arrays, and print seconds, those of h5py, and megabytes; run in a process of its own."""
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.normal(size=(n_transitions, 28)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n_transitions, 5)).astype(np.float32),
        "rewards": rng.normal(size=n_transitions),
        "terminals": np.arange(n_transitions) % EPISODE_LENGTH == EPISODE_LENGTH - 1,
    }

    root = Path(os.environ["MINARI_DATASETS_PATH"])
    numbers = itertools.count()

    def write(length: int) -> None:
        path = root / "plain.hdf5"
        with h5py.File(path, "w", track_order=True) as file:
            for start in range(0, n_transitions, length):
                group = file.create_group(f"episode_{start // length}")
                for key, values in {**arrays, "truncations": ~arrays["terminals"]}.items():
                    rows = values[start : start + length]
                    group.create_dataset(key, data=rows, chunks=True, maxshape=(None, *rows.shape[1:]))
        sync(path)

    def import_() -> None:
        import_arrays(f"benchmark/import{next(numbers)}-v0", **arrays)

    # Libraries are loaded, and hold what they hold
    import_arrays("benchmark/warm-v0", **{key: values[: 2 * EPISODE_LENGTH] for key, values in arrays.items()})
    # VmHWM starts again
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_megabytes("VmRSS")
    import_()
    megabytes = resident_megabytes("VmHWM") - before
    functions = {"import": import_, "episodes": lambda: write(EPISODE_LENGTH), "flat": lambda: write(n_transitions)}
    print(json.dumps({**take_turns(functions, 5), "megabytes": megabytes}))


def measure_import(n_transitions: int) -> dict[str, float]:
    """What ``import_random`` prints."""
    command = [sys.executable, __file__, "--import-arrays", str(n_transitions)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def train_mapped(dataset_id: str) -> None:
    """Train on a memory-mapped store, and print the resident memory; run in a process of its own."""
    model = QAM(
        "FlowPolicy",
        offline_dataset=dataset_id,
        offline_storage="memmap",
        chunk_size=HORIZON,
        batch_size=BATCH_SIZE,
        buffer_size=1000,
        flow_steps=2,
        policy_kwargs={"net_arch": [32]},
    )
    most: list[float] = []

    def watch(locals_: dict[str, Any], _: dict[str, Any]) -> bool:
        most.append(resident_megabytes("VmRSS"))
        return True

    model.pretrain(gradient_steps=UPDATES, callback=watch)
    print(json.dumps({"while building and training": resident_megabytes("VmHWM"), "training": max(most)}))


def measure_memory(n_transitions: int) -> dict[str, float]:
    """Resident megabytes of a new process that builds the store and trains, and of one that finds it built."""
    dataset = write_dataset(n_transitions)
    results = []
    for _ in range(2):
        command = [sys.executable, __file__, "--train-mapped", dataset.id]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results.append(json.loads(output.splitlines()[-1]))
    built, reused = results
    minari.delete_dataset(dataset.id)
    return {"building": built["while building and training"], "training": reused["training"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transitions", type=int, default=1_000_000)
    parser.add_argument("--large", type=int, default=10_000_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--train-mapped", help=argparse.SUPPRESS)
    parser.add_argument("--import-arrays", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train_mapped:
        train_mapped(arguments.train_mapped)
        return
    if arguments.import_arrays:
        import_random(arguments.import_arrays)
        return

    # Nothing is left in the user's caches
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"], os.environ["SB3_QAM_CACHE"] = f"{folder}/minari", f"{folder}/mapped"
        importing = measure_import(arguments.transitions)
        print(
            f"import arrays of {arguments.transitions:,} transitions: {importing['import']:.2f} s, plain h5py "
            f"{importing['episodes']:.2f} s by episodes (ratio {importing['import'] / importing['episodes']:.2f}), "
            f"{importing['flat']:.2f} s flat, {importing['megabytes']:.0f} MB at most beside the arrays"
        )
        dataset = write_dataset(arguments.transitions)
        loading, batches = time_loading(dataset), time_batches(dataset)
        print(
            f"load {arguments.transitions:,} transitions: {loading['load']:.2f} s, plain h5py {loading['h5py']:.2f} s, "
            f"ratio {loading['ratio']:.2f}"
        )
        print(
            f"batch of {BATCH_SIZE} sequences of {HORIZON}: {batches['batches'] / 200 * 1e6:.0f} µs, "
            f"bare indexing {batches['indexing'] / 200 * 1e6:.0f} µs, ratio {batches['ratio']:.2f}"
        )
        minari.delete_dataset(dataset.id)
        memory = {n: measure_memory(n) for n in (100_000, arguments.large)}
        for n, megabytes in memory.items():
            print(
                f"memory-mapped, {n:,} transitions: {megabytes['training']:.0f} MB resident in training, "
                f"{megabytes['building']:.0f} MB at most with building the store"
            )
        if arguments.json:
            results = {"importing": importing, "loading": loading, "batches": batches, "memory": memory}
            arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
