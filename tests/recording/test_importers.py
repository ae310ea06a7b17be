"""Data of other formats arrives as it was written, and what is wrong with it is said by name."""

import itertools
import json
import multiprocessing
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from minari import MinariDataset

from sb3_qam import QAM
from sb3_qam.datasets import wrap_dataset
from sb3_qam.datasets.minari import read_episodes
from sb3_qam.recording import import_array_file, import_arrays, import_lerobot, import_robomimic
from sb3_qam.recording.staging import Staging
from tests.conftest import be_killed_before, needs_uncompressed_images
from tests.robot_files import DATA, unpack_lerobot, write_robomimic

LEFT_OUT = "ignore:.*that step is left out"


def flat_arrays(n: int = 12, terminal: int = 4) -> dict[str, np.ndarray]:
    """Two episodes: one that terminates, and one that the arrays end with."""
    rng = np.random.default_rng(0)
    return {
        "observations": rng.normal(size=(n, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        "rewards": rng.normal(size=n),
        "terminals": np.arange(n) == terminal,
        "timeouts": np.arange(n) == n - 1,
    }


def assert_equal_steps(dataset: MinariDataset, arrays: dict[str, Any], steps: list[np.ndarray]) -> None:
    assert dataset.total_episodes == len(steps)
    for episode, rows in zip(dataset, steps, strict=True):
        for key, stored in {
            "observations": episode.observations[: len(rows)],
            "actions": episode.actions,
            "rewards": episode.rewards,
            "terminals": episode.terminations,
        }.items():
            np.testing.assert_array_equal(stored, arrays[key][rows])
        assert len(episode.observations) == len(rows) + 1
        np.testing.assert_array_equal(np.flatnonzero(episode.terminations | episode.truncations), [len(rows) - 1])


def test_the_step_whose_successor_is_not_there_is_left_out():
    arrays = flat_arrays()
    with pytest.warns(UserWarning, match=r"^1 of 2 episodes end without a termination, .* that step is left out\.$"):
        dataset = import_arrays("mine/arrays-v0", **arrays)
    assert_equal_steps(dataset, arrays, [np.arange(5), np.arange(5, 11)])
    np.testing.assert_array_equal(list(dataset)[1].observations[-1], arrays["observations"][11])
    assert dataset.observation_space == spaces.Box(-np.inf, np.inf, (3,))
    assert dataset.action_space == spaces.Box(-1, 1, (2,))
    QAM("FlowPolicy", offline_dataset=dataset, batch_size=4, flow_steps=2).pretrain(gradient_steps=1)


def test_next_observations_keep_it(recwarn: pytest.WarningsRecorder):
    arrays = flat_arrays()
    following = np.append(arrays["observations"][1:], np.ones((1, 3), np.float32), 0)
    following[4] = -1
    dataset = import_arrays("mine/arrays-v0", **arrays, next_observations=following)
    assert_equal_steps(dataset, arrays, [np.arange(5), np.arange(5, 12)])
    for episode, last in zip(dataset, (-1, 1), strict=True):
        np.testing.assert_array_equal(episode.observations[-1], [last] * 3)
    assert not recwarn.list


@pytest.mark.filterwarnings(LEFT_OUT)
@given(lengths=st.lists(st.integers(3, 6), min_size=1, max_size=4), as_flags=st.booleans())
def test_every_way_to_say_where_episodes_end_gives_the_same_episodes(lengths: list[int], as_flags: bool):
    ends = np.cumsum(lengths)
    arrays = {**flat_arrays(ends[-1], -1), "timeouts": np.isin(np.arange(ends[-1]) + 1, ends)}
    steps = [np.arange(end - n, end - 1) for n, end in zip(lengths, ends, strict=True)]
    for number in range(2):
        if number:
            flags = arrays.pop("timeouts")
            arrays["episode_ends"] = flags if as_flags else ends
        dataset_id = f"mine/ends{number}-v0"
        assert_equal_steps(import_arrays(dataset_id, **arrays), arrays, steps)
        minari.delete_dataset(dataset_id)


def test_timeouts_and_episode_ends_exclude_each_other():
    flags = np.array([False, True])
    rows = {"observations": np.zeros((2, 1)), "actions": np.zeros((2, 1)), "rewards": np.zeros(2), "terminals": flags}
    with pytest.raises(ValueError, match=r"both timeouts and episode_ends in .*: leave the other out"):
        import_arrays("test/both-v0", **rows, timeouts=flags, episode_ends=[2])


def test_a_terminal_within_an_episode_cuts_the_bootstrap_only():
    arrays = flat_arrays()
    dataset = import_arrays(
        "mine/arrays-v0", **{**arrays, "timeouts": None, "terminals": np.arange(12) % 6 == 5}, episode_ends=[12]
    )
    assert read_episodes(dataset).lengths.tolist() == [12]
    assert np.flatnonzero(read_episodes(dataset).terminations).tolist() == [5, 11]


@pytest.mark.filterwarnings(LEFT_OUT)
@pytest.mark.parametrize("layout", ["npz", "hdf5", "d3rlpy 1"])
def test_files_hold_what_arrays_do(layout: str, tmp_path: Path):
    arrays: dict[str, Any] = flat_arrays()
    stored = {**arrays, "observations/pos": arrays["observations"], "observations/id": np.arange(12, dtype=np.int64)}
    del stored["observations"]
    if layout == "d3rlpy 1":
        stored["episode_terminals"] = stored["terminals"] | stored.pop("timeouts")
    path = tmp_path / f"arrays.{layout[:4]}"
    if layout == "npz":
        np.savez(path, **stored)
    else:
        with h5py.File(path, "w") as file:
            for key, values in {**stored, "infos/qpos": np.zeros((12, 2)), "version": "1.0"}.items():
                file[key] = values
    dataset = import_array_file(path, "mine/file-v0")
    first, second = dataset
    np.testing.assert_array_equal(first.observations["pos"][:-1], arrays["observations"][:5])
    np.testing.assert_array_equal(second.observations["id"][:, 0], np.arange(5, 12))
    np.testing.assert_array_equal(np.append(first.rewards, second.rewards), arrays["rewards"][:-1])
    assert isinstance(dataset.observation_space, spaces.Dict)


@pytest.mark.filterwarnings(LEFT_OUT)
def test_what_d3rlpy_has_dumped():
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.normal(size=(12, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (12, 2)).astype(np.float32),
        "rewards": rng.normal(size=12).astype(np.float32),
        "terminals": np.arange(12) == 4,
    }
    dataset = import_array_file(DATA / "d3rlpy.h5", "mine/d3rlpy-v0")
    assert_equal_steps(dataset, arrays, [np.arange(5), np.arange(5, 11)])


@pytest.mark.filterwarnings(LEFT_OUT)
def test_spaces_that_are_given_are_kept_and_have_to_fit():
    arrays = {**flat_arrays(), "actions": np.arange(12) % 3}
    given_spaces = {"observation_space": spaces.Box(-9, 9, (3,)), "action_space": spaces.Discrete(3)}
    dataset = import_arrays("mine/arrays-v0", **arrays, **given_spaces)
    assert (dataset.observation_space, dataset.action_space) == tuple(given_spaces.values())
    for space, message in (
        (spaces.Box(-1, 1, (4,)), r"observations holds values of shape \(5, 3\), expected \(5, 4\)"),
        (spaces.Dict(pos=spaces.Box(-1, 1, (3,))), "observations does not hold 'pos'"),
    ):
        with pytest.raises(ValueError, match=f"episode 0: {message}"):
            import_arrays("mine/arrays-v1", **arrays, **{**given_spaces, "observation_space": space})


def test_an_array_that_lies_in_another_file_is_not_followed(tmp_path: Path):
    with h5py.File(tmp_path / "arrays.h5", "w") as file:
        file["observations"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(ValueError, match=r"arrays\.h5 cannot be read .*observations lies in another file"):
        import_array_file(tmp_path / "arrays.h5", "mine/file-v0")


def test_bounds_of_actions():
    arrays = flat_arrays(terminal=11)
    arrays["actions"] = np.array([-3, 0], np.float32) + np.arange(12, dtype=np.float32)[:, None] * [1, 0]
    message = (
        r"actions in <arrays> lie between \[-3\., +0\.\] and \[8\., 0\.\], not in \[-1, 1\].*action_space=\(low, high\)"
    )
    with pytest.raises(ValueError, match=message):
        import_arrays("mine/arrays-v0", **arrays)
    given_spaces = {"data": spaces.Box(np.array([-3.0, -1.0]), np.array([8.0, 1.0])), (-9, 9): spaces.Box(-9, 9, (2,))}
    for number, (given_space, expected) in enumerate(given_spaces.items()):
        dataset = import_arrays(f"mine/arrays{number}-v0", **arrays, action_space=given_space)
        np.testing.assert_array_equal(dataset.action_space.low, expected.low)
        np.testing.assert_array_equal(dataset.action_space.high, expected.high)
    with pytest.warns(
        UserWarning, match=r"6 actions in <arrays> lie beyond the bounds that were given, Box\(-2.0, 3.0"
    ):
        import_arrays("mine/narrow-v0", **arrays, action_space=(-2, 3))
    for wrong in ("range", (1.0,), ([0, 0, 0], 1)):
        with pytest.raises(ValueError, match=r"Expected action_space to be a space, \(low, high\) .*'data', got "):
            import_arrays("mine/arrays-v0", **arrays, action_space=wrong)
    for unbounded in (spaces.Box(-np.inf, np.inf, (2,)), (-3e38, 3e38)):
        with pytest.raises(ValueError, match="needs finite action bounds"):
            import_arrays("mine/arrays-v0", **arrays, action_space=unbounded)


WRONG: dict[str, tuple[Callable[[dict], Any], str]] = {
    "missing key": (
        lambda each: each.pop("rewards"),
        r"no 'rewards' in .*arrays\.npz: expected .* it has observations, a",
    ),
    "wrong length": (lambda each: each.update(rewards=np.zeros(11)), r"rewards in .*npz holds 11 values, expected 12"),
    "NaN": (
        lambda each: each["rewards"].__setitem__(6, np.nan),
        r"episode 1: rewards is not finite .* at step 1 \(file .*npz",
    ),
    "NaN action": (
        lambda each: each["actions"].__setitem__(6, np.nan),
        r"episode 1: actions is not finite .* at step 1 ",
    ),
    "NaN flag": (
        lambda each: each.update(terminals=np.full(12, np.nan)),
        r"terminals in .*npz holds nan at step 0: expected 0",
    ),
    "no end": (
        lambda each: each.update(terminals=np.zeros(12), timeouts=np.zeros(12)),
        r"No episode ends in .*npz: give",
    ),
    "ends": (
        lambda each: each.pop("timeouts") is None or each.update(episode_ends=[5, 11]),
        r"episode_ends in .*npz are \[ ?5 11\]: expected 12 flags",
    ),
    "discrete": (
        lambda each: each.update(actions=np.arange(12)),
        r"episode 0: actions holds no floating-point numbers",
    ),
    "text": (lambda each: each.update(observations=np.array(["a"] * 12)), r"episode 0: observations holds <U1 values"),
    "objects": (
        lambda each: each.update(observations=np.array([{}] * 12)),
        r"npz holds Python objects, which are not read: save arrays of numbers",
    ),
    "next": (
        lambda each: each.update(next_observations=each["observations"]),
        r"episode 0 cannot be read: next_observations of step 0 is another than observations of step 1: where",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_arrays_that_are_wrong_are_refused_and_nothing_is_written(
    change: Callable[[dict], Any], message: str, tmp_path: Path
):
    arrays = flat_arrays()
    change(arrays)
    np.savez(tmp_path / "arrays.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        import_array_file(tmp_path / "arrays.npz", "mine/wrong-v0")
    assert_nothing_is_left()


def assert_nothing_is_left() -> None:
    from minari.storage import get_dataset_path

    assert minari.list_local_datasets() == {}
    assert not list(Path(get_dataset_path()).rglob("*.hdf5"))


def import_until_killed(n_events: int) -> None:
    """Import, and be killed before the given one of all the operations on files in Minari's cache."""
    be_killed_before(n_events)
    import_arrays("mine/arrays-v0", **flat_arrays(terminal=11))


@pytest.mark.kill
def test_killed_anywhere_there_is_the_whole_or_nothing():
    for n_events in itertools.count(step=3):
        child = multiprocessing.get_context("fork").Process(target=import_until_killed, args=(n_events,))
        child.start()
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        if "mine/arrays-v0" not in minari.list_local_datasets():
            import_arrays("mine/arrays-v0", **flat_arrays(terminal=11))
        assert minari.load_dataset("mine/arrays-v0").total_steps == 12
        minari.delete_dataset("mine/arrays-v0")
    assert n_events > 10


def test_a_taken_id_and_too_short_episodes_are_refused():
    arrays = flat_arrays(terminal=11)
    import_arrays("mine/arrays-v0", **arrays)
    with pytest.raises(
        ValueError, match=r"There is a dataset 'mine/arrays-v0' .*already.*minari delete mine/arrays-v0"
    ):
        import_arrays("mine/arrays-v0", **arrays)
    with pytest.raises(ValueError, match="'arrays' is not a Minari dataset id"):
        import_arrays("arrays", **arrays)
    arrays["terminals"][:] = False
    with pytest.raises(ValueError, match="No episode in <arrays> has two steps, a termination, or the obs"):
        import_arrays("mine/short-v0", **{**arrays, "timeouts": np.ones(12)})
    assert list(minari.list_local_datasets()) == ["mine/arrays-v0"]


def test_shuffled_transitions_are_episodes_of_one_step():
    """(s, a, r, s', d) in any order: each is learned from."""
    rng, n = np.random.default_rng(0), 20
    s, s_next, a = (rng.uniform(-1, 1, (n, size)).astype(np.float32) for size in (3, 3, 2))
    r, d = rng.normal(size=n), np.arange(n) % 5 == 0
    import_arrays("mine/steps-v0", s, a, r, d, next_observations=s_next, episode_ends=np.ones(n))
    model = QAM("FlowPolicy", offline_dataset="mine/steps-v0", batch_size=8, policy_kwargs={"net_arch": [8]})
    buffer = model.make_offline_buffer("mine/steps-v0")
    batch = buffer.batch_of(np.arange(n))
    for found, expected in (
        (batch.observations, s),
        (batch.next_observations, s_next),
        (batch.rewards, r),
        (batch.masks, ~d),
        (batch.valid, np.ones(n)),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_rows_of_another_shape_are_refused_even_if_they_have_as_many_values():
    images = np.zeros((12, 3, 8, 8), np.uint8)
    arrays = {**flat_arrays(terminal=11), "observations": images}
    with pytest.raises(ValueError, match=r"observations .*shape \(12, 3, 8, 8\), expected \(12, 8, 8, 3\)"):
        import_arrays("mine/images-v0", **arrays, observation_space=spaces.Box(0, 255, (8, 8, 3), np.uint8))


def test_an_import_leaves_an_interrupted_collection_alone():
    staged = Staging("mine/cut-v0").folder / "some" / "0.npz"
    staged.parent.mkdir(parents=True)
    staged.write_bytes(b"an episode")
    with pytest.raises(ValueError, match="The collection of 'mine/cut-v0' was interrupted and has finished episodes"):
        import_arrays("mine/cut-v0", **flat_arrays(terminal=11))
    assert staged.read_bytes() == b"an episode"


def test_keys_stay_in_the_order_that_they_were_given_in():
    arrays = flat_arrays(terminal=11)
    observations = {"position": np.ones((12, 2), np.float32), "goal": np.full((12, 2), 2, np.float32)}
    import_arrays("mine/keys-v0", **{**arrays, "observations": observations})
    wrapped = wrap_dataset("mine/keys-v0", gym.wrappers.FlattenObservation)
    assert next(wrapped.episodes())[1].observations[0].tolist() == [1, 1, 2, 2]


def test_robomimics_arrays_are_those_of_the_file(tmp_path: Path):
    demos = write_robomimic(tmp_path / "lift.hdf5")
    dataset = import_robomimic(tmp_path / "lift.hdf5", "mine/lift-v0")
    for episode, demo in zip(dataset, demos.values(), strict=True):
        for key, rows in demo["obs"].items():
            np.testing.assert_array_equal(episode.observations[key][:-1], rows)
            np.testing.assert_array_equal(episode.observations[key][1:], demo["next_obs"][key])
        for stored, key in (
            (episode.actions, "actions"),
            (episode.rewards, "rewards"),
            (episode.terminations, "dones"),
        ):
            np.testing.assert_array_equal(stored, demo[key])
        np.testing.assert_array_equal(episode.infos["success"][1:], demo["rewards"] == 1)
    assert dataset.action_space == spaces.Box(-1, 1, (7,), np.float64)
    assert "Lift" in dataset.storage.metadata["description"]

    keys = ["robot0_eef_pos", "object"]
    masked = import_robomimic(tmp_path / "lift.hdf5", "mine/lift-v1", keys, "train", flatten_obs=True)
    assert masked.total_episodes == 2
    expected = np.concatenate([demos[2]["obs"][key] for key in keys], 1)
    np.testing.assert_array_equal(list(masked)[1].observations[:-1], expected)


def test_robomimic_without_next_obs_loses_the_step_that_does_not_terminate(tmp_path: Path):
    demos = write_robomimic(tmp_path / "lift.hdf5")
    with h5py.File(tmp_path / "lift.hdf5", "a") as file:
        for number in demos:
            del file[f"data/demo_{number}/next_obs"]
        file["data/demo_2/dones"][:] = 0
    with pytest.warns(UserWarning, match="1 of 3 episodes end without a termination"):
        dataset = import_robomimic(tmp_path / "lift.hdf5", "mine/lift-v0")
    assert [len(episode.actions) for episode in dataset] == [5, 3, 6]


def replace(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.File], None]:
    def apply(file: h5py.File) -> None:
        values = file[key][()]
        del file[key]
        file[key] = change(values)

    return apply


def with_nan(values: np.ndarray) -> np.ndarray:
    values[1] = np.nan
    return values


WRONG_DEMOS: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "missing data": (lambda file: file.pop("data"), r"lift.hdf5 cannot be read as one of robomimic's files.*data"),
    "missing obs": (lambda file: file["data/demo_2"].pop("obs"), r"episode 2 cannot be read: .*obs.*lift\.hdf5"),
    "missing key": (
        lambda file: file["data/demo_2/obs"].pop("object"),
        r"episode 2 cannot be read: .*object.*lift\.hdf5",
    ),
    "missing rewards": (lambda file: file["data/demo_2"].pop("rewards"), r"episode 2 cannot be read: .*rewards.*lift"),
    "length": (
        replace("data/demo_2/rewards", lambda rows: rows[1:]),
        r"episode 2: rewards holds .*\(3,\), expected \(4,\)",
    ),
    "obs length": (
        replace("data/demo_2/obs/object", lambda rows: rows[1:]),
        r"episode 2 cannot be read: next_obs/object holds 4",
    ),
    "NaN": (
        replace("data/demo_2/obs/object", with_nan),
        r"episode 2: observations\['object'\] is not finite.*lift.hdf5",
    ),
    "shape": (
        replace("data/demo_2/actions", lambda rows: rows[:, 1:]),
        r"episode 2: actions holds values of shape \(4, 6\), expected \(4, 7\)",
    ),
    "obs shape": (
        lambda file: [
            replace(f"data/demo_2/{key}/object", lambda rows: rows[:, 1:])(file) for key in ("obs", "next_obs")
        ],
        r"episode 2: observations\['object'\] holds values of shape \(5, 9\), expected \(5, 10\)",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG_DEMOS.values(), ids=WRONG_DEMOS)
def test_demonstrations_that_are_wrong_are_named(change: Callable[[h5py.File], Any], message: str, tmp_path: Path):
    write_robomimic(tmp_path / "lift.hdf5")
    with h5py.File(tmp_path / "lift.hdf5", "a") as file:
        change(file)
    with pytest.raises(ValueError, match=message):
        import_robomimic(tmp_path / "lift.hdf5", "mine/lift-v0")
    assert_nothing_is_left()


def test_what_robomimics_file_does_not_have(tmp_path: Path):
    path = tmp_path / "lift.hdf5"
    write_robomimic(path)
    with pytest.raises(ValueError, match="there is no mask 'test', only train"):
        import_robomimic(path, "mine/lift-v0", mask="test")
    with pytest.raises(ValueError, match=r"episode 0 cannot be read: .*'image'"):
        import_robomimic(path, "mine/lift-v0", ["image"])
    path.write_bytes(path.read_bytes()[:5000])
    for importer in (import_robomimic, import_array_file):
        with pytest.raises(ValueError, match=r"lift\.hdf5 cannot be read as an HDF5 file, it is cut off"):
            importer(path, "mine/lift-v0")
        with pytest.raises(FileNotFoundError, match=r"There is no file nothing\.hdf5"):
            importer("nothing.hdf5", "mine/lift-v0")


pytest.importorskip("pyarrow")
STATE, TOP = "observation.state", "observation.images.top"
LENGTHS = np.array([8, 6, 7])


@needs_uncompressed_images
@pytest.mark.filterwarnings(LEFT_OUT)
@pytest.mark.parametrize("version", ["v21", "v30", "v30_images"])
def test_lerobots_frames_are_those_it_was_given(version: str, tmp_path: Path):
    if version != "v30_images":
        pytest.importorskip("av")
    frames = unpack_lerobot(tmp_path)
    dataset = import_lerobot(tmp_path / version, "mine/robot-v0", action_space="data")
    assert list(dataset.observation_space) == ["observation_images_top", "observation_state"]
    first = 0
    # The episode that does not succeed loses its last step, not its last observation
    for episode, n, n_steps in zip(dataset, LENGTHS, (8, 5, 7), strict=True):
        steps = slice(first, first + n_steps)
        np.testing.assert_array_equal(episode.observations["observation_state"][:n], frames[STATE][first : first + n])
        np.testing.assert_array_equal(episode.actions, frames["action"][steps])
        np.testing.assert_array_equal(episode.rewards, frames["next.reward"][steps, 0])
        np.testing.assert_array_equal(episode.terminations, frames["next.success"][steps, 0])
        np.testing.assert_array_equal(episode.infos["success"][1:], frames["next.success"][steps, 0])
        images = episode.observations["observation_images_top"][:n].astype(float)
        # A video is close, and its frames, 20 levels apart, are not mistaken for each other
        off = np.abs(images - frames[TOP][first : first + n]).mean((1, 2, 3))
        assert off.max() < (8 if version != "v30_images" else 1e-9)
        first += n
    QAM("MultiInputPolicy", offline_dataset=dataset, batch_size=4, buffer_size=100, flow_steps=2).pretrain(
        gradient_steps=1
    )


@pytest.mark.filterwarnings(LEFT_OUT)
def test_rewards_tasks_and_observations_can_be_chosen(tmp_path: Path):
    frames = unpack_lerobot(tmp_path)
    kwargs: dict[str, Any] = {"observation_keys": [STATE], "action_space": "data"}
    sparse = import_lerobot(tmp_path / "v21", "mine/robot-v0", "sparse", **kwargs)
    assert [(episode.rewards.tolist(), episode.terminations[-1]) for episode in sparse] == [
        ([0.0] * (n - 1) + [1.0], True) for n in LENGTHS
    ]
    reach = import_lerobot(tmp_path / "v30", "mine/robot-v1", "next.success", task="reach", **kwargs, flatten_obs=True)
    assert [episode.rewards.sum() for episode in reach] == [1.0, 0.0]
    assert reach.observation_space.shape == (3,)

    def norm(episode: dict[str, np.ndarray]) -> np.ndarray:
        assert TOP not in episode
        return np.linalg.norm(episode[STATE], axis=1)

    by_function = import_lerobot(tmp_path / "v30", "mine/robot-v2", norm, **kwargs)
    np.testing.assert_array_equal(next(iter(by_function)).rewards, np.linalg.norm(frames[STATE][:8], axis=1))


@needs_uncompressed_images
@pytest.mark.filterwarnings(LEFT_OUT)
@pytest.mark.parametrize("version", ["v30", "v30_images"])
def test_images_are_scaled(version: str, tmp_path: Path):
    pytest.importorskip("av")
    unpack_lerobot(tmp_path)
    dataset = import_lerobot(tmp_path / version, "mine/robot-v0", action_space="data", image_size=(40, 48))
    assert next(iter(dataset)).observations["observation_images_top"].shape == (9, 40, 48, 3)


def edit_info(folder: Path, **changes: Any) -> None:
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_table(folder: Path, change: Callable[[Any], Any]) -> None:
    """Of episode 1 in version 2.1."""
    import pyarrow.parquet

    path = folder / "data/chunk-000/episode_000001.parquet"
    pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(path)), path)


def set_column(name: str, change: Callable[[list], Any]) -> Callable[[Path], None]:
    def apply(table: Any) -> Any:
        import pyarrow

        return table.set_column(table.column_names.index(name), name, pyarrow.array(change(table[name].to_pylist())))

    return lambda folder: edit_table(folder, apply)


def cut(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:900])


WRONG_ROBOTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no info": (
        lambda folder: (folder / "meta/info.json").unlink(),
        r"v21 holds no LeRobot dataset: there is no .*info\.json",
    ),
    "broken info": (cut("meta/info.json"), r"The metadata in .*v21/meta cannot be read: .*Copy"),
    "no rewards": (
        lambda folder: edit_info(folder, features={}),
        r"v21 has neither next\.reward nor next\.success: give",
    ),
    "cut table": (
        cut("data/chunk-000/episode_000001.parquet"),
        r"episode 1 cannot be read: observation\.state in .*episode_000001\.parquet: ",
    ),
    "cut video": (
        cut(f"videos/chunk-000/{TOP}/episode_000001.mp4"),
        rf"episode 1 cannot be read: {TOP} in .*000001\.mp4: ",
    ),
    "no table": (
        lambda folder: (folder / "data/chunk-000/episode_000001.parquet").unlink(),
        r"episode 1 cannot be read: observation\.state in .*episode_000001\.parquet: ",
    ),
    "rows": (
        lambda folder: edit_table(folder, lambda table: table.slice(1)),
        r"episode 1 .*observation.*has 5 rows there, expected 6",
    ),
    "missing column": (
        lambda folder: edit_table(folder, lambda table: table.drop_columns([STATE])),
        rf"episode 1 cannot be read: {STATE} in .*{STATE}.*v21",
    ),
    "NaN": (
        set_column("next.reward", lambda rows: [np.nan, *rows[1:]]),
        r"episode 1: rewards is not finite .*at step 0 .*v21",
    ),
    "shape": (
        set_column(STATE, lambda rows: [row[1:] for row in rows]),
        rf"episode 1 .*{STATE} in .* 12 numbers, expected 6 times",
    ),
    "null": (
        set_column(STATE, lambda rows: [None, *rows[1:]]),
        rf"episode 1 .*{STATE} in .* 15 numbers, expected 6 times",
    ),
}


@needs_uncompressed_images
@pytest.mark.filterwarnings(LEFT_OUT)
@pytest.mark.parametrize(("change", "message"), WRONG_ROBOTS.values(), ids=WRONG_ROBOTS)
def test_a_lerobot_dataset_that_is_wrong_is_named(change: Callable[[Path], Any], message: str, tmp_path: Path):
    pytest.importorskip("av")
    unpack_lerobot(tmp_path)
    change(tmp_path / "v21")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        import_lerobot(tmp_path / "v21", "mine/robot-v0", action_space=(-3, 3))
    assert_nothing_is_left()


def test_what_a_lerobot_dataset_does_not_have(tmp_path: Path):
    unpack_lerobot(tmp_path)
    for kwargs, message in (
        ({"task": "fly"}, "no episodes of the task 'fly', only of 'reach', 'push'"),
        ({"reward": "next.bonus"}, "no feature 'next.bonus', only observation.state, "),
        ({"observation_keys": ["state"]}, "no feature 'state', only observation.state, "),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            import_lerobot(tmp_path / "v30", "mine/robot-v0", **kwargs)
