"""The commands, as they are typed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import gymnasium_robotics
import minari
import numpy as np
import pytest
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from typer.testing import CliRunner

from sb3_qam import QAM
from sb3_qam.cli import app
from tests.conftest import OGBENCH_DATA as DATA
from tests.conftest import OGBENCH_TASK as TASK
from tests.conftest import needs_ogbench, record, write_dataset
from tests.robot_files import DATA as ROBOTS
from tests.robot_files import unpack_lerobot, write_robomimic

gym.register_envs(gymnasium_robotics)

MAZE = "PointMaze_UMaze-v3"
DATASET_ID = "test/maze-v0"
HYPERPARAMS = [
    "--hyperparams",
    f"offline_dataset:'{DATASET_ID}'",
    "offline_steps:100",
    "learning_starts:0",
    "buffer_size:1000",
    "flow_steps:2",
    "policy_kwargs:dict(net_arch=[8])",
]


# What a user has in the current folder
MODULE = """
import gymnasium as gym
import numpy as np
from gymnasium import spaces

class Corridor(gym.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space = spaces.Dict(place=spaces.Box(-9, 9, (1,)), light=spaces.Box(0, 1, (2,)))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def observe(self):
        return {"place": np.array([self.place], np.float32), "light": np.ones(2, np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0.0
        return self.observe(), {}

    def step(self, action):
        self.place += float(action[0])
        return self.observe(), self.place, False, False, {}

    def render(self):
        return np.zeros((32, 32, 3), np.uint8)

gym.register("Corridor-v0", Corridor, max_episode_steps=5)
"""


@pytest.mark.parametrize(
    "spelling", [["--env", "corridor:Corridor-v0"], ["--env", "Corridor-v0", "--gym-packages", "corridor"]]
)
def test_own_environments_work_in_every_command(spelling: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its module lies in the current folder. A run remembers it, and eval uses its statistics however it is named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    Path("corridor.py").write_text(MODULE)

    def succeed(*args: str) -> str:
        # Each command is a process of its own
        gym.registry.pop("Corridor-v0", None)
        sys.modules.pop("corridor", None)
        result = CliRunner().invoke(app, args)
        assert result.exit_code == 0, result.output
        return result.output

    data = ["data", "collect", spelling[1], "mine/way-v0", "-n", "3", *spelling[2:]]
    assert "mine/way-v0: 3 episodes, 15 steps" in succeed(*data)
    assert minari.load_dataset("mine/way-v0").spec.env_spec.entry_point == "corridor:Corridor"
    small = ["offline_dataset:'mine/way-v0'", "offline_steps:3", "buffer_size:100", "policy_kwargs:dict(net_arch=[8])"]
    task = ["--algo", "qam-e", *spelling]
    succeed(
        "train", *task, "-n", "12", "--eval-freq", "-1", "--hyperparams", "normalize:True", "learning_starts:0", *small
    )
    model = "logs/qam_edit/Corridor-v0_1/Corridor-v0.zip"
    assert "Corridor-v0, 1 episodes each" in (found := succeed("eval", model, "-n", "1"))
    assert found == succeed("eval", model, "-n", "1", "--env", "corridor:Corridor-v0")
    assert "Loading logs" in succeed("enjoy", *task, "-f", "logs", "--no-render", "-n", "5")
    # The run says where the environment is
    assert "Loading logs" in succeed("enjoy", "--algo", "QAM_Edit", "--env", "Corridor-v0", "-f", "logs", "--no-render")
    assert "Loading logs" in succeed("record-video", *task, "-f", "logs", "-n", "5")
    assert list(Path("logs").rglob("*.mp4"))
    assert "3 episodes" in succeed(
        "data", "collect", spelling[1], "mine/own-v0", "-n", "3", "--model", model, *spelling[2:]
    )


@pytest.fixture
def maze_dataset() -> minari.MinariDataset:
    env = gym.make(MAZE, max_episode_steps=40)
    return write_dataset(record(env, 5), env.observation_space, env.action_space, DATASET_ID, env=env.spec)


def start(folder: Path, *args: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "sb3_qam", *args]
    # Tests may run from a checkout that is not installed
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(folder: Path, *args: str) -> str:
    process = start(folder, *args)
    output, errors = process.communicate()
    assert process.returncode == 0, output + errors
    return output


def invoke(*args: str) -> list[str]:
    """Lines of a command that fails."""
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 1, result.output
    return result.output.strip().splitlines()


def test_train_enjoy_resume_and_evaluate_from_an_empty_folder(maze_dataset, tmp_path: Path):
    task = ["--algo", "qam", "--env", MAZE]
    evaluation = ["--eval-freq", "150", "--eval-episodes", "1"]
    output = run(tmp_path, "train", *task, "-n", "200", *evaluation, *HYPERPARAMS)
    folder = tmp_path / "logs" / "qam" / f"{MAZE}_1"
    assert "Saving to logs/qam" in output
    assert "early" not in output
    # Both phases are on one axis
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == [150, 300]
    model = QAM.load(folder / f"{MAZE}.zip")
    assert (model.num_timesteps, model._n_offline_steps_done, model._n_updates) == (300, 100, 300)

    enjoy = ["enjoy", *task, "-f", "logs", "--no-render", "-n", "50"]
    assert "Loading logs/qam" in run(tmp_path, *enjoy)
    assert "Loading logs/qam" in run(tmp_path, *enjoy, "--replan-every", "1", "--ensemble-decay", "0.01")
    refused = start(tmp_path, *enjoy, "--replan-every", "2").communicate()[1]
    assert "replan_every must be an integer from 1 to chunk_size=1" in refused.splitlines()[-1]

    file = str(folder / f"{MAZE}.zip")
    run(tmp_path, "train", *task, "-n", "20", "--eval-freq", "-1", "-i", file, *HYPERPARAMS)
    again = QAM.load(tmp_path / "logs" / "qam" / f"{MAZE}_2" / f"{MAZE}.zip")
    assert (again._n_offline_steps_done, again._n_updates) == (100, 320)

    result = json.loads(run(tmp_path, "eval", file, "-n", "2", "--n-envs", "2", "--json"))
    assert (result["model"], result["env"]) == (file, MAZE)
    for row in ("deterministic", "sampled"):
        assert (result[row]["episodes"], result[row]["mean_length"]) == (2, 300)
        assert result[row]["success"] in (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    "settings", ["frame_stack: 2", "normalize: true\n  env_wrapper: {sb3_qam.datasets.StackFrames: {n_stack: 2}}"]
)
def test_data_of_a_run_is_as_from_its_environment(settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In training, and where fitted Q evaluation reads it."""
    monkeypatch.chdir(tmp_path)
    env = gym.make("Pendulum-v1", max_episode_steps=30)
    write_dataset(record(env, 3), env.observation_space, env.action_space, "test/swings-v0")
    Path("mine.yml").write_text(
        "Pendulum-v1:\n  policy: FlowPolicy\n  n_timesteps: 10\n  offline_steps: 10\n  buffer_size: 100\n"
        f"  offline_dataset: test/swings-v0\n  policy_kwargs: {{net_arch: [8]}}\n  {settings}\n"
    )
    train = ["train", "--algo", "qam", "--env", "Pendulum-v1", "--eval-freq", "-1", "--conf-file", "mine.yml"]
    result = CliRunner().invoke(app, train)
    assert result.exit_code == 0, result.output
    file = "logs/qam/Pendulum-v1_1/Pendulum-v1.zip"
    assert (QAM.load(file).observation_space.shape, QAM.load(file).num_timesteps) == ((6,), 20)
    result = CliRunner().invoke(app, ["eval", file, "--offline", "test/swings-v0", "--gradient-steps", "2", "--json"])
    found = json.loads(result.stdout)
    assert found["dataset"] == "test/swings-v0"
    assert found["sampled"]["low"] <= found["sampled"]["value"] <= found["sampled"]["high"]


def test_ctrl_c_saves_and_says_how_to_resume(maze_dataset, tmp_path: Path):
    args = ["--algo", "qam_f", "--env", MAZE, "-n", "100000", "--eval-freq", "-1", "--log-interval", "1"]
    process = start(tmp_path, "train", *args, *HYPERPARAMS)
    assert process.stdout is not None
    # The first episode is over
    line = next(line for line in process.stdout if "rollout/" in line)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate()
    assert process.returncode == 0, line + rest + errors
    file = f"logs/qam_f/{MAZE}_1/{MAZE}.zip"
    model = QAM.load(tmp_path / file)
    n_left = 100_100 - model.num_timesteps
    assert f"Training ended {n_left} steps early" in rest
    assert rest.strip().endswith(f"-i {file} -n {n_left}")
    assert model._n_offline_steps_done == 100


def test_data_collect_records_random_actions_models_and_oracles(tmp_path: Path):
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=100, policy_kwargs={"net_arch": [8]}).save(tmp_path / "sac.zip")
    for number, options in enumerate(([], ["--model", str(tmp_path / "sac.zip"), "--algo", "sac", "--deterministic"])):
        args = ["data", "collect", "Pendulum-v1", f"test/swings{number}-v0", "-n", "2", "--max-episode-steps", "15"]
        result = CliRunner().invoke(app, [*args, *options])
        assert f"test/swings{number}-v0: 2 episodes, 30 steps" in result.output, result.output
        # and more of them
        args[args.index("2")] = "3"
        assert "3 episodes, 45 steps" in CliRunner().invoke(app, [*args, *options]).output
    assert invoke("data", "collect", "Pendulum-v1", "x-v0", "--model", "m.zip", "--algo", "sca")[0].startswith(
        "Error: There is no algorithm 'sca': did you mean 'sac'? There are a2c, ars, "
    )
    assert invoke("data", "collect", "Pendulum-v1", "x-v0", "--model", "m.zip", "--oracle")[0].startswith(
        "Error: --model and --oracle exclude each other"
    )


@needs_ogbench
def test_data_collect_records_an_oracle():
    maze = ["data", "collect", "pointmaze-medium-v0", "test/way-v0", "-n", "1", "--oracle", "--max-episode-steps", "30"]
    assert "test/way-v0: 1 episodes, 30 steps" in CliRunner().invoke(app, maze).output


@needs_ogbench
def test_data_record_writes_ogbenchs_file_and_says_where_tasks_are_solved(tmp_path: Path):
    path = tmp_path / "cube.npz"
    args = ["data", "record", "cube-single-v0", str(path), "-n", "1", "--max-episode-steps", "11"]
    output = CliRunner().invoke(app, args).output
    assert f"{path}: 1 episodes, 10 transitions, solved in\n  cube-single-singletask-task1-v0: 0.00%\n" in output
    assert path.is_file()


def test_data_collect_normalizes_as_the_model_was_trained(tmp_path: Path):
    """Where RL Zoo puts the statistics, or where the user says; the algorithm by the zoo's name."""
    env = VecNormalize(make_vec_env("Pendulum-v1"))
    model = QAM("FlowPolicy", env, seed=0, buffer_size=100, flow_steps=2, policy_kwargs={"net_arch": [8]})
    model.learn(20)
    run = tmp_path / "Pendulum-v1_1"
    model.save(run / "model.zip")
    (run / "Pendulum-v1").mkdir()
    env.save(str(run / "Pendulum-v1" / "vecnormalize.pkl"))
    model.save(tmp_path / "elsewhere.zip")
    statistics = ["--vec-normalize", str(run / "Pendulum-v1" / "vecnormalize.pkl")]
    actions = []
    for number, options in enumerate(
        (
            ["--model", str(run / "model.zip"), "--algo", "qam_edit"],
            ["--model", str(tmp_path / "elsewhere.zip"), "--algo", "trqam", *statistics],
        )
    ):
        args = ["data", "collect", "Pendulum-v1", f"test/swings{number}-v0", "-n", "1", "--max-episode-steps", "15"]
        result = CliRunner().invoke(app, [*args, *options])
        assert "1 episodes, 15 steps" in result.output, result.output
        actions.append(next(iter(minari.load_dataset(f"test/swings{number}-v0"))).actions)
    np.testing.assert_array_equal(actions[0], actions[1])
    # Without them it would act on observations of another scale
    for command in ("eval {} --env Pendulum-v1", "data collect Pendulum-v1 test/raw-v0 --model {}"):
        result = CliRunner().invoke(app, command.format(tmp_path / "elsewhere.zip").split())
        assert result.exit_code == 1
        assert "Error: " in result.output
        assert "by --vec-normalize." in result.output
    assert "test/raw-v0" not in minari.list_local_datasets()


@needs_ogbench
def test_data_import_writes_what_a_configuration_names(tmp_path: Path):
    result = CliRunner().invoke(app, ["data", "import", TASK, "--path", str(DATA)])
    assert result.exit_code == 0, result.output
    assert result.output == f"ogbench/{TASK}: 2 episodes, 2000 steps\n"
    assert minari.load_dataset(f"ogbench/{TASK}").total_steps == 2000
    assert invoke("data", "import", "Pendulum-v1")[0].startswith("Error: 'Pendulum-v1' is not the id of an OGBench")


@needs_ogbench
def test_what_was_imported_is_trained_on_by_its_name_and_success_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The task has no configuration of its own."""
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(app, ["data", "import", TASK, "--path", str(DATA)])
    small = ["offline_steps:5", "learning_starts:0", "buffer_size:100", "policy_kwargs:dict(net_arch=[8])"]
    options = ["-n", "5", "--eval-freq", "10", "--eval-episodes", "1", "--eval-env-kwargs", "max_episode_steps:20"]
    result = CliRunner().invoke(
        app, ["train", "--algo", "qam", "--env", TASK, *options, "--hyperparams", "flow_steps:2", *small]
    )
    assert result.exit_code == 0, result.output
    folder = tmp_path / "logs" / "qam" / f"{TASK}_1"
    assert QAM.load(folder / f"{TASK}.zip").offline_dataset == f"ogbench/{TASK}"
    with np.load(folder / "evaluations.npz") as evaluations:
        assert evaluations["successes"].tolist() == [[0]]


@pytest.mark.filterwarnings("ignore:.*that step is left out")
def test_data_import_recognizes_what_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    unpack_lerobot(tmp_path)
    write_robomimic(tmp_path / "lift.hdf5")
    arrays = {"observations": np.zeros((9, 3)), "actions": np.full((9, 2), 2.0), "rewards": np.zeros(9)}
    np.savez("arrays.npz", **arrays, terminals=np.arange(9) % 3 == 2)
    np.save("arrays.npy", arrays["actions"])
    for args, expected in (
        ("arrays.npz mine/first-v0 --action-bounds -3,3", "mine/first-v0: 3 episodes, 9 steps"),
        ("lift.hdf5 mine/first-v1 --key object --mask train", "mine/first-v1: 2 episodes, 9 steps"),
        ("v30 mine/first-v2 --key observation.state --reward sparse --action-bounds data", ": 3 episodes, 21 steps"),
        (str(ROBOTS / "d3rlpy.h5") + " mine/first-v3", "mine/first-v3: 2 episodes, 11 steps"),
    ):
        result = CliRunner().invoke(app, ["data", "import", *args.split()])
        assert expected in result.output, result.output
    bounds_are = "finite numbers LOW,HIGH with LOW < HIGH, or data, got"
    for args, expected in (
        ("arrays.npz", "Error: What is it to be called? Give an id: sb3-qam data import arrays.npz mine/data-v0."),
        (
            "arrays.npz mine/other-v0",
            "Error: The actions in arrays.npz lie between [2., 2.] and [2., 2.], not in [-1, 1]",
        ),
        ("arrays.npz mine/other-v0 --mask train --reward sparse", "Error: arrays.npz takes no --mask, --reward: see"),
        *(
            (
                f"arrays.npz mine/other-v0 --action-bounds={bounds}",
                f"Error: --action-bounds takes {bounds_are} '{bounds}'.",
            )
            for bounds in ("high", "-inf,inf", "3,-3", "1,2,3")
        ),
        ("nothing.npz mine/other-v0", "Error: There is no file nothing.npz."),
        ("arrays.npy mine/other-v0", "Error: arrays.npy is neither an npz nor an HDF5 file"),
        (". mine/other-v0", "Error: . holds no LeRobot dataset: there is no meta/info.json."),
    ):
        assert invoke("data", "import", *args.split())[0].startswith(expected)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--env", "Nothing-v0"], "Error: There is no environment 'Nothing-v0'"),
        (["--env", "Pendulum-v1", "--hyperparams", "offline_dataset:mine/maze-v0"], "quote text twice, such as"),
        (["--env", "Pendulum-v1", "--hyperparams", "gamma:2.0"], "Error: gamma must be a finite number"),
        (["--env", "Pendulum-v1", "-i", "nothing.zip"], "Error: The trained_agent must be a valid path"),
        (["--env", "Pendulum-v1", "-conf", "nothing.yml"], "No such file or directory: 'nothing.yml'"),
    ],
)
def test_errors_of_the_zoo_are_on_one_line(args: list[str], expected: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["train", "--algo", "qam", "-n", "10", *args])
    assert result.exit_code == 1
    assert expected in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["train", "enjoy"])
def test_without_the_zoo_it_is_said_what_to_install(command: str):
    code = f"import sys; sys.modules['rl_zoo3'] = None; from sb3_qam.cli import app; app(['{command}'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: RL Zoo cannot be imported")
    assert result.stderr.endswith("pip install 'sb3-qam[zoo]'.\n")


@pytest.mark.parametrize(
    "command", [["train"], ["enjoy"], ["eval"], ["benchmark"], ["data", "import"], ["data", "describe"]]
)
def test_every_help_has_an_example(command: list[str]):
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0, result.output
    assert "Example" in result.output
    assert f"sb3-qam {' '.join(command)} " in result.output
