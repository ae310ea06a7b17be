"""``OnnxPolicy`` of ``runtime.py`` acts as ``predict()`` of the model does, and needs NumPy and onnxruntime alone."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, VecTransposeImage

import sb3_qam.runtime
from sb3_qam import QAM, MultiInputPolicy, __version__, export_onnx
from sb3_qam.common.buffers import map_observations
from sb3_qam.ifql import policies as ifql
from sb3_qam.rebrac import policies as rebrac
from sb3_qam.runtime import OnnxPolicy
from tests.common.test_export import POLICIES, make_policy
from tests.contract.conftest import RandomEnv, images, small

N_STEPS, N_ENVS = 7, 3
# Of chunks, which the others take no notice of
EXECUTIONS: dict[str, dict[str, Any]] = {
    "open loop": {},
    "replanned": {"replan_every": 2},
    "ensembled": {"ensemble_decay": 0.1},
    "ensembled, now and then": {"replan_every": 2, "ensemble_decay": 0.0},
}
DICT = spaces.Dict(arm=spaces.Box(-np.inf, np.inf, (2,)), camera=images(channels_first=True), tool=spaces.Discrete(3))
ALL_POLICIES: dict[str, dict[str, Any]] = {
    **POLICIES,
    "IFQL": {"policy_class": ifql.FlowPolicy, "best_of_n": 4},
    "IFQL, chunk, Dict": {"space": DICT, "policy_class": ifql.MultiInputPolicy, "best_of_n": 3, "chunk_size": 3},
    "ReBRAC": {"policy_class": rebrac.ReBRACPolicy},
    "ReBRAC, chunk, Dict": {"space": DICT, "policy_class": rebrac.MultiInputPolicy, "chunk_size": 3},
}
IN_CHUNKS = ("chunk", "edit, best of n, chunk", "IFQL, chunk, Dict", "ReBRAC, chunk, Dict")
CASES = [(name, "open loop") for name in ALL_POLICIES] + [
    (name, execution) for name in IN_CHUNKS for execution in list(EXECUTIONS)[1:]
]


def observations_of(space: spaces.Space, n_steps: int = N_STEPS) -> list[Any]:
    """For each step a batch."""
    space.seed(1)
    return [
        map_observations(lambda *parts: np.stack(parts), *(space.sample() for _ in range(N_ENVS)))
        for _ in range(n_steps)
    ]


def assert_same(policy: Any, runtime: OnnxPolicy, raw: list[Any], seen: list[Any]) -> None:
    """
    :param policy: What acts by PyTorch
    :param runtime: What acts without
    :param raw: Observations of the environment, a batch for each step
    :param seen: What the policy takes
    """
    starts = np.random.default_rng(0).random((len(raw), N_ENVS)) < 0.2
    state = state_of_runtime = None
    for of_env, of_policy, started in zip(raw, seen, starts, strict=True):
        expected, state = policy.predict(of_policy, state, started, deterministic=True)
        action, state_of_runtime = runtime.predict(of_env, state_of_runtime, started)
        assert (action.shape, action.dtype) == (expected.shape, np.float32)
        span = policy.action_space.high - policy.action_space.low
        np.testing.assert_allclose(action / span, expected / span, atol=1e-5)
    # One environment, from the beginning
    single = runtime.predict(map_observations(lambda part: part[1], raw[0]))[0]
    expected, _ = policy.predict(map_observations(lambda part: part[1], seen[0]), deterministic=True)
    assert single.shape == policy.action_space.shape
    np.testing.assert_allclose(single, expected, atol=1e-4)


@pytest.mark.parametrize(("name", "execution"), CASES)
def test_it_acts_as_the_policy_does(name: str, execution: str, tmp_path: Path):
    policy = make_policy(**ALL_POLICIES[name])
    for setting, value in EXECUTIONS[execution].items():
        setattr(policy, setting, value)
    export_onnx(policy, tmp_path / "policy.onnx")
    raw = observations_of(policy.observation_space)
    assert_same(policy, OnnxPolicy(tmp_path / "policy.onnx"), raw, raw)


def test_settings_can_be_changed_after_export(tmp_path: Path):
    policy = make_policy(chunk_size=3)
    export_onnx(policy, tmp_path / "policy.onnx")
    runtime, raw = OnnxPolicy(tmp_path / "policy.onnx"), observations_of(policy.observation_space)
    policy.replan_every = runtime.replan_every = 1
    assert_same(policy, runtime, raw, raw)
    runtime.replan_every = 4
    with pytest.raises(ValueError, match=r"from 1 to chunk_size=3, .* got 4"):
        runtime.predict(raw[0])


# ---------------------------------------------------------------------- VecNormalize

VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
PARTS = spaces.Dict(arm=spaces.Box(-np.inf, np.inf, (2,), np.float64), camera=images(), tool=spaces.Discrete(3))
NORMALIZED: dict[str, tuple[spaces.Space, dict[str, Any]]] = {
    "vector": (VECTOR, {}),
    "float64": (spaces.Box(-np.inf, np.inf, (3,), np.float64), {}),
    "a part of a Dict": (PARTS, {"norm_obs_keys": ["arm"]}),
    "image": (images(), {}),
    "rewards alone": (VECTOR, {"norm_obs": False}),
    "narrow": (VECTOR, {"clip_obs": 0.5}),
}


@pytest.mark.parametrize("name", NORMALIZED)
@pytest.mark.parametrize("given", [False, True], ids=["of the model", "given"])
def test_the_statistics_of_vec_normalize_are_in_the_file(name: str, given: bool, tmp_path: Path):
    space, options = NORMALIZED[name]
    venv: Any = DummyVecEnv([lambda: RandomEnv(space)])
    if name in ("image", "a part of a Dict"):
        venv = VecTransposeImage(venv)
    env = VecNormalize(venv, **options)
    policy_class = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "FlowPolicy"
    model = QAM(policy_class, env, chunk_size=3, seed=0, **small(learning_starts=10))
    raw = observations_of(venv.observation_space)
    if name in ("vector", "float64"):
        # Where float32 would lose digits
        raw = [1e4 + 30 * part for part in raw]
        env.obs_rms.update(np.concatenate(raw))
    export_onnx(model.policy if given else model, tmp_path / "policy.onnx", vec_normalize=env if given else None)
    normalized = [env.normalize_obs(each) for each in raw]
    assert_same(model.policy, OnnxPolicy(tmp_path / "policy.onnx"), raw, normalized)
    # The file by itself takes the environment's observations, too
    file = OnnxPolicy(tmp_path / "policy.onnx")
    assert {each.name for each in file.session.get_inputs()} - {"noise"} == set(file.metadata["observations"])


def test_statistics_belong_to_keys_in_any_order(tmp_path: Path):
    space = spaces.Dict([("b", spaces.Box(-9.0, 9.0, (3,))), ("a", spaces.Box(-9.0, 9.0, (2,)))])
    env = VecNormalize(DummyVecEnv([lambda: RandomEnv(space)]))
    model = QAM("MultiInputPolicy", env, seed=0, **small()).learn(20)
    model.policy.replan_every = np.int64(1)
    export_onnx(model, tmp_path / "policy.onnx")
    raw = observations_of(space)
    assert_same(model.policy, OnnxPolicy(tmp_path / "policy.onnx"), raw, [env.normalize_obs(each) for each in raw])


def test_statistics_of_other_observations_are_refused(tmp_path: Path):
    env = VecNormalize(DummyVecEnv([lambda: RandomEnv(spaces.Box(-1.0, 1.0, (4,)))]))
    with pytest.raises(ValueError, match=r"vec_normalize has observations of Box.*\(4,\).*\(3,\)"):
        export_onnx(make_policy(), tmp_path / "policy.onnx", vec_normalize=env)


def test_statistics_that_were_forgotten_are_missed(tmp_path: Path):
    env = VecNormalize(DummyVecEnv([lambda: RandomEnv(VECTOR)]))
    QAM("FlowPolicy", env, **small()).learn(12).save(tmp_path / "model")
    with pytest.warns(UserWarning, match=r"VecNormalize normalized, .*: pass vec_normalize=VecNormalize.load"):
        export_onnx(QAM.load(tmp_path / "model"), tmp_path / "policy.onnx")
    with pytest.raises(ValueError, match=r"vec_normalize must be a VecNormalize, .* got 'statistics.pkl'"):
        export_onnx(QAM.load(tmp_path / "model"), tmp_path / "policy.onnx", vec_normalize="statistics.pkl")


def test_settings_are_attributes_and_no_arguments(runtime: OnnxPolicy, tmp_path: Path):
    with pytest.raises(TypeError, match="replan_every"):
        OnnxPolicy(tmp_path / "policy.onnx", replan_every=2)


# ---------------------------------------------------------------------- what it takes


@pytest.fixture
def runtime(tmp_path: Path) -> OnnxPolicy:
    space = spaces.Dict(arm=spaces.Box(-1.0, 1.0, (2,)), camera=images(channels_first=True), tool=spaces.Discrete(3))
    policy = make_policy(space, MultiInputPolicy, chunk_size=2)
    export_onnx(policy, tmp_path / "policy.onnx")
    return OnnxPolicy(tmp_path / "policy.onnx", seed=0)


def observation() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"arm": np.array([0.1, -0.2]), "camera": rng.integers(0, 256, (3, 36, 36)).astype(np.uint8), "tool": 2}


def test_images_come_with_their_channels_first_or_last(runtime: OnnxPolicy):
    first = runtime.predict(observation())[0]
    last = {**observation(), "camera": observation()["camera"].transpose(1, 2, 0)}
    np.testing.assert_array_equal(runtime.predict(last)[0], first)
    batch = {key: np.stack([part, part]) for key, part in last.items()}
    np.testing.assert_allclose(runtime.predict(batch)[0], [first, first], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arm": np.zeros(3)}, r"'arm' must have the shape \(2,\), .* got \(3,\)"),
        ({"arm": np.array([0, np.nan])}, r"'arm' of environment 0 is not finite: nan at \[1\]"),
        ({"arm": np.array([[0, 0], [1e300, 0]])}, r"'arm' of environment 1 is not finite"),
        (
            {"camera": np.zeros((36, 36), np.uint8)},
            r"'camera' must have the shape \(3, 36, 36\), or \(n_envs, 3, 36, 36\), got \(36, 36\)",
        ),
        # A sensor that gave nothing
        ({"arm": [0.1, None]}, r"'arm' must hold numbers, got \[0.1, None\]"),
        ({"arm": ["0", "1"]}, "'arm' must hold numbers"),
        ({"arm": [[0.1], [0.2, 0.3]]}, "'arm' must be one array of numbers, and its parts differ in shape"),
        ({"arm": np.zeros((2, 2))}, "parts of the observation are of"),
        ({"other": np.zeros(2)}, r"keys \['arm', 'camera', 'tool'\], got \['arm', 'camera', 'other', 'tool'\]"),
    ],
)
def test_other_observations_are_refused(change: dict[str, Any], message: str, runtime: OnnxPolicy):
    with pytest.raises(ValueError, match=message):
        runtime.predict({**observation(), **change})
    with pytest.raises(ValueError, match=r"must not be the \(observation, info\) of reset\(\)"):
        runtime.predict((observation(), {}))


def test_a_state_of_something_else_is_refused(runtime: OnnxPolicy):
    with pytest.raises(ValueError, match=r"state must be what predict\(\) returned for the same 1 environment"):
        runtime.predict(observation(), state=np.zeros(2))
    with pytest.raises(ValueError, match="state must be the second part of what"):
        runtime.predict(observation(), runtime.predict(observation()))
    with pytest.raises(ValueError, match="deterministic must be True or False, got 'no'"):
        runtime.predict(observation(), deterministic="no")
    with pytest.raises(ValueError, match="episode_start must have one entry for each of 1 environment"):
        runtime.predict(observation(), episode_start=np.ones(2, bool))


def test_sampled_actions_depend_on_the_seed(runtime: OnnxPolicy, tmp_path: Path):
    again = OnnxPolicy(tmp_path / "policy.onnx", seed=0)
    sampled = [[each.predict(observation(), deterministic=False)[0] for _ in range(3)] for each in (runtime, again)]
    np.testing.assert_array_equal(*sampled)
    assert len({action.tobytes() for action in sampled[0]}) == 3


# ---------------------------------------------------------------------- the file


def test_the_metadata_says_what_the_file_is(tmp_path: Path):
    policy = make_policy(chunk_size=3)
    policy.replan_every = 2
    export_onnx(policy, tmp_path / "policy.onnx")
    (entry,) = onnx.load(tmp_path / "policy.onnx").metadata_props
    assert entry.key == "sb3_qam"
    assert json.loads(entry.value) == {
        "sb3_qam_version": __version__,
        "is_dict": False,
        "observations": {"observation": {"shape": [3], "dtype": "float32", "is_image": False}},
        "observation_space": "Box(-1.0, 1.0, (3,), float32)",
        "action_space": {"shape": [2], "dtype": "float32", "low": [0.0, -5.0], "high": [10.0, 2.0]},
        "chunk_size": 3,
        "replan_every": 2,
        "ensemble_decay": None,
        "flow_steps": 3,
    }
    policy.replan_every = 4
    with pytest.raises(ValueError, match="from 1 to chunk_size=3"):
        export_onnx(policy, tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()


def test_files_of_others_are_refused(tmp_path: Path):
    export_onnx(make_policy(), tmp_path / "policy.onnx")
    file = onnx.load(tmp_path / "policy.onnx")
    del file.metadata_props[:]
    onnx.save(file, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"other.onnx does not say how to act with it: write it again by export_onnx"):
        OnnxPolicy(tmp_path / "other.onnx")
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nothing.onnx\."):
        OnnxPolicy(tmp_path / "nothing.onnx")
    content = (tmp_path / "policy.onnx").read_bytes()
    (tmp_path / "half.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"onnxruntime does not load .*half.onnx, expected a file that export_onnx"):
        OnnxPolicy(tmp_path / "half.onnx")
    with pytest.raises(ValueError, match="takes models of this package and their policies, got SAC"):
        export_onnx(SAC("MlpPolicy", "Pendulum-v1", buffer_size=10), tmp_path / "policy.onnx")


def test_fewer_flow_steps_are_faster_and_come_with_a_warning(tmp_path: Path):
    policy = make_policy(flow_steps=10)
    raw = observations_of(policy.observation_space)
    with pytest.warns(UserWarning, match="flow_steps=2 instead of 10 .* 40% with 10, 13% with 3"):
        export_onnx(policy, tmp_path / "policy.onnx", flow_steps=2)
    assert policy.flow_steps == 10
    runtime = OnnxPolicy(tmp_path / "policy.onnx")
    assert runtime.metadata["flow_steps"] == 2
    policy.flow_steps = 2
    assert_same(policy, runtime, raw, raw)
    with pytest.raises(ValueError, match="flow_steps must be an integer of at least 1, got 0"):
        export_onnx(policy, tmp_path / "policy.onnx", flow_steps=0)
    assert policy.flow_steps == 2
    with pytest.raises(ValueError, match="ReBRACPolicy has no flow, leave flow_steps out"):
        export_onnx(make_policy(policy_class=rebrac.ReBRACPolicy), tmp_path / "policy.onnx", flow_steps=5)


def test_it_runs_alone_where_there_is_nothing_but_numpy_and_onnxruntime(tmp_path: Path):
    env = VecNormalize(DummyVecEnv([lambda: RandomEnv(VECTOR)]))
    model = QAM("FlowPolicy", env, chunk_size=4, **small())
    model.policy.ensemble_decay = 0.01
    export_onnx(model, tmp_path / "policy.onnx")
    shutil.copy(sb3_qam.runtime.__file__, tmp_path / "runtime.py")
    raw = [each[0] for each in observations_of(VECTOR)]
    np.save(tmp_path / "observations.npy", raw)
    script = """
        import sys

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {"torch", "sb3_qam", "stable_baselines3", "gymnasium", "onnx", "scipy"}:
                    raise ImportError(name)

        sys.meta_path.insert(0, Refuse())
        import numpy as np
        from runtime import OnnxPolicy

        policy, state, actions = OnnxPolicy("policy.onnx"), None, []
        for observation in np.load("observations.npy"):
            action, state = policy.predict(observation, state)
            actions.append(action)
        np.save("actions.npy", actions)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, env={}, check=True)
    state, expected = None, []
    for each in raw:
        action, state = model.predict(env.normalize_obs(each), state, deterministic=True)
        expected.append(action)
    np.testing.assert_allclose(np.load(tmp_path / "actions.npy"), expected, atol=1e-5)
