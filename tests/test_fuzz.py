"""Any two values of any two arguments are tried together: training succeeds, or one error names an argument."""

import functools
import inspect
import itertools
import random
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_qam import QAM, FlowPolicy
from tests.conftest import record, write_dataset
from tests.contract.conftest import RandomEnv, images, parameters_of, same_parameters

# Half of them cover all pairs, most of which are refused; in the others arguments fit each other as far as is known
N_COMBINATIONS = 640

VECTOR = spaces.Box(-1.0, 1.0, (3,))
OBSERVATIONS = {
    "vector": VECTOR,
    "float64": spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
    "image": images(),
    "image, channels first": images(channels_first=True),
    "discrete": spaces.Discrete(4),
    "multi-binary": spaces.MultiBinary(3),
    "dict": spaces.Dict(arm=VECTOR, tool=spaces.Discrete(3)),
    "dict with images": spaces.Dict(arm=VECTOR, camera=images()),
}
ACTIONS = {
    "symmetric": spaces.Box(-1.0, 1.0, (2,)),
    "one": spaces.Box(0.0, 10.0, (1,)),
    "matrix": spaces.Box(-2.0, 1.0, (2, 3)),
}
WRAPPERS = {
    "none": lambda env: env,
    "VecNormalize": lambda env: VecNormalize(env, norm_obs_keys=vectors_of(env)),
    "VecNormalize without rewards": lambda env: VecNormalize(env, norm_reward=False, norm_obs_keys=vectors_of(env)),
    "VecNormalize outside": lambda env: VecNormalize(VecMonitor(env), norm_obs=False),
    "VecFrameStack": lambda env: VecFrameStack(env, 2) if isinstance(env.observation_space, spaces.Box) else env,
    "VecMonitor": VecMonitor,
}
# The first value of each is the default
FACTORS: dict[str, list[Any]] = {
    "observations": [*OBSERVATIONS, "goals"],
    "actions": [*ACTIONS],
    "wrapper": [*WRAPPERS],
    "n_envs": [1, 3],
    "dataset": ["none", "object", "id", "list"],
    "env": ["given", "none"],
    "policy": ["FlowPolicy", "MlpPolicy", "CnnPolicy", "MultiInputPolicy", FlowPolicy],
    "variant": [
        {},
        {"best_of_n": 3},
        {"edit_scale": 0.3},
        {"distill_coef": 1.0},
        {"residual": True},
        {"adjoint": "scalar"},
        {"adjoint": "bptt"},
        {"kl_budget": 0.5},
        {"inverse_temperature": 0.0},
        {"edit_scale": 0.3, "distill_coef": 1.0},
    ],
    "chunk_size": [1, 3],
    "n_steps": [1, 2],
    "offline_steps": [0, 3],
    "bc_steps": [0, 2],
    "offline_fraction": [None, 0.0, 0.5, 1.0],
    "offline_storage": ["memory", "memmap"],
    "replay_buffer_class": [None, HerReplayBuffer],
    "optimize_memory_usage": [False, True],
    "reward_transform": [None, {"scale": 2.0}, {"from_success": True}],
    "random_shift": [0, 2],
    "precision": ["float32", "bf16"],
    "cuda_graph": [False, True],
    "learning_rate": [3e-4, lambda remaining: 1e-3 * remaining],
    "learning_starts": [4, 0],
    "train_freq": [1, (2, "step"), (1, "episode")],
    "gradient_steps": [1, -1, 0],
    "action_noise": [False, True],
    "target_update_interval": [1, 2],
    "max_grad_norm": [1.0, float("inf")],
    "flow_steps": [2, 1],
    "policy_kwargs": [
        {},
        {"ode_method": "midpoint"},
        {"ode_method": "dopri5"},
        {"share_features_extractor": True},
        {"normalize_images": False},
        {"net_arch": {"pi": [4], "qf": []}, "n_critics": 1},
        {"net_arch": [8], "flow_layer_norm": True},
    ],
}
# What an error may name: an argument of the constructor or the policy, or a class that was given for one
NAMES = {
    *itertools.chain.from_iterable(inspect.signature(each).parameters for each in (QAM, FlowPolicy)),
    *("CnnPolicy", "MultiInputPolicy", "VecNormalize", "NatureCNN", "HerReplayBuffer", "dataset"),
} - {"self", "policy", "device", "seed", "verbose", "gamma"}


def vectors_of(env: VecEnv) -> list[str] | None:
    space = env.observation_space
    return [key for key, part in space.items() if key == "arm"] if isinstance(space, spaces.Dict) else None


@functools.cache
def combinations() -> list[dict[str, int]]:
    """Rows of one value of each factor, by its number. Among them is each pair of values of two factors."""
    draw = random.Random(0)
    missing = {
        ((one, i), (other, j))
        for one, other in itertools.combinations(FACTORS, 2)
        for i, j in itertools.product(range(len(FACTORS[one])), range(len(FACTORS[other])))
    }
    rows: list[dict[str, int]] = []
    while len(rows) < N_COMBINATIONS:
        # About one argument in four is not the default: with more of them most rows would end in an early error
        row = {name: draw.randrange(len(values)) * (draw.random() < 0.3) for name, values in FACTORS.items()}
        if len(rows) % 2 == 0:
            row = fitting(row)
        elif missing:
            # Two pairs that were not there yet
            for pair in draw.sample(sorted(missing), min(2, len(missing))):
                row |= dict(pair)
        rows.append(row)
        missing -= set(itertools.combinations(row.items(), 2))
    assert not missing, f"{len(missing)} pairs are left: increase N_COMBINATIONS"
    return rows


def fitting(row: dict[str, int]) -> dict[str, int]:
    """The same with some of the values replaced by the default, or one that goes with the others."""
    case = {name: FACTORS[name][value] for name, value in row.items()}
    observations, policy, variant = case["observations"], case["policy"], case["variant"]
    is_dict, is_image = observations in ("goals", "dict", "dict with images"), observations.startswith("image")
    is_her = case["replay_buffer_class"] is not None and observations == "goals"
    needs_data = case["env"] == "none" or case["offline_steps"] or case["bc_steps"] or case["wrapper"] != "none"
    defaults = {
        "policy": is_dict == (policy != "MultiInputPolicy") or (policy == "CnnPolicy" and not is_image),
        "replay_buffer_class": not is_her,
        "optimize_memory_usage": True,
        "chunk_size": is_her,
        "n_steps": is_her or case["chunk_size"] > 1,
        "env": is_her,
        "n_envs": case["train_freq"] == (1, "episode"),
        "variant": len(variant) > 1 or (case["flow_steps"] == 1 and "adjoint" in variant),
        "reward_transform": True,
        "wrapper": observations in ("discrete", "multi-binary", "goals") or is_image or case["dataset"] != "none",
        "random_shift": "image" not in observations,
    }
    fitted = {name: 0 if defaults.get(name) else value for name, value in row.items()}
    if needs_data and fitted["dataset"] == 0:
        fitted |= {"dataset": 1, "wrapper": 0}
    return fitted


def make_env(observations: str, actions: str) -> gym.Env:
    if observations == "goals":
        return BitFlippingEnv(n_bits=3, continuous=True, max_steps=6)
    return RandomEnv(OBSERVATIONS[observations], ACTIONS[actions])


def check(case: dict[str, Any], folder: Path) -> None:
    """Build, pretrain, learn, save, load, learn and predict."""
    observations, actions, n_envs, wrapper, dataset, env_kind, variant, noise = (
        case.pop(name)
        for name in ("observations", "actions", "n_envs", "wrapper", "dataset", "env", "variant", "action_noise")
    )
    single = make_env(observations, actions)
    n_dims = single.action_space.shape
    source: Any = None
    if dataset != "none":
        written = write_dataset(record(single, 3), single.observation_space, single.action_space)
        source = {"object": written, "id": written.id, "list": [written, written]}[dataset]
    env = None
    if env_kind == "given":
        env = WRAPPERS[wrapper](DummyVecEnv([lambda: make_env(observations, actions) for _ in range(n_envs)]))
    policy_kwargs = {"net_arch": [8], **case.pop("policy_kwargs")}
    kwargs = {**case, **variant, "batch_size": 6, "buffer_size": 60, "seed": 0, "device": "cpu"}
    if noise:
        kwargs["action_noise"] = NormalActionNoise(np.zeros(n_dims), np.full(n_dims, 0.1))
    model = QAM(env=env, offline_dataset=source, policy_kwargs=policy_kwargs, **kwargs)
    if source is not None:
        model.pretrain(gradient_steps=2)
    if env is not None:
        model.learn(15)
    model.save(folder / "model")
    loaded = QAM.load(folder / "model", env=env, **({} if source is None else {"offline_dataset": source}))
    assert same_parameters(parameters_of(model), parameters_of(loaded))
    batch = batch_space(model.observation_space, 4).sample()
    chosen, again = (each.predict(batch, deterministic=True)[0] for each in (model, loaded))
    np.testing.assert_array_equal(chosen, again)
    assert all(model.action_space.contains(action) for action in chosen)
    if env is not None:
        loaded.learn(8, reset_num_timesteps=False)
    elif source is not None:
        loaded.pretrain(gradient_steps=1, reset_num_timesteps=False)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(N_COMBINATIONS))
@pytest.mark.filterwarnings("ignore")
def test_two_values_together_work_or_are_refused_by_name(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SB3_QAM_CACHE", str(tmp_path / "cache"))
    row = combinations()[number]
    case = {name: FACTORS[name][value] for name, value in row.items()}
    error = None
    try:
        check(dict(case), tmp_path)
    except Exception as caught:
        error = caught
    if error is not None:
        print(f"{type(error).__name__}: {error}")
        is_refused = isinstance(error, (ValueError, TypeError, RuntimeError, AssertionError))
        is_named = any(re.search(rf"\b{name}\b", str(error)) for name in NAMES)
        if not (is_refused and is_named):
            print({name: case[name] for name, value in row.items() if value > 0})
            raise error
