"""OGBench's scripted controllers, for :func:`~sb3_qam.recording.collect`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from types import MappingProxyType
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from sb3_qam.recording.scripted import ScriptedPolicy
from sb3_qam.utils.checks import check_in_range, check_one_of

KINDS = ("plan", "markov")
# Where cubes can be stacked: how probable a target on top of another cube is, drawn from a range for every episode
STACKING_RANGES = {1: (0.0, 0.0), 2: (0.0, 0.25), 3: (0.05, 0.35), 4: (0.1, 0.5), 8: (0.0, 0.35)}
# Of a Markovian oracle's noise, in each dimension of the action: position, yaw, gripper
NOISE_SCALES = np.array([1.0, 1.0, 1.0, 3.0, 10.0])
MANIPULATION_NOISE = 0.1
MAZE_NOISE = 0.5


def ogbench_oracle(
    env_id: str, kind: str | None = None, noise: float | None = None, p_random_action: float = 0.0
) -> ScriptedPolicy:
    """
    Scripted controllers as OGBench collects with: its oracles for the manipulation of cubes, scenes and puzzles, and
    shortest ways for point mazes. A target that is reached is followed by a random new one, until the environment
    truncates the episode.

    Given an id, ``collect`` makes the environment as they need it, with ``terminate_at_goal=False`` and, for
    manipulation, ``mode="data_collection"``. Rewards and success are then about the random targets, and
    ``recover_environment()`` gives this environment: make that of a task yourself.

    :param env_id: Id of the environment, such as ``cube-single-v0`` or ``pointmaze-medium-v0``
    :param kind: Of a manipulation oracle: ``"plan"`` (the default) follows a noisy plan, which OGBench calls *play*,
        ``"markov"`` acts in a closed loop with noise on its actions, which OGBench calls *noisy*
    :param noise: How much noise, by default 0.1 for manipulation and 0.5 for mazes, in units of the action
    :param p_random_action: Probability of a random action at every step
    :return: The policy for ``collect``
    :raises ImportError: if the package ``ogbench`` is not installed
    :raises ValueError: if OGBench has no such oracle
    """
    try:
        import ogbench  # noqa: F401 (registers its environments)
    except ImportError as error:
        raise ImportError("OGBench's oracles need its package: pip install 'sb3-qam[ogbench]'.") from error
    try:
        spec = gym.spec(env_id)
    except gym.error.Error as error:
        raise ValueError(
            f"There is no environment '{env_id}': expected one of OGBench's cube, scene, puzzle and pointmaze "
            "environments, such as scene-v0."
        ) from error
    entry_point = str(spec.entry_point)
    if entry_point.startswith("ogbench.manipspace"):
        kind = KINDS[0] if kind is None else kind
        check_one_of("kind", kind, KINDS)
        return ManipulationOracle(MANIPULATION_NOISE if noise is None else noise, p_random_action, kind)
    if entry_point.startswith("ogbench.locomaze") and spec.kwargs["loco_env_type"] == "point":
        if kind is not None:
            raise ValueError(f"kind is for oracles of manipulation, got {kind!r} for '{env_id}': leave it out.")
        return PointMazeOracle(MAZE_NOISE if noise is None else noise, p_random_action)
    raise ValueError(
        f"There is no scripted oracle for '{env_id}': expected one of OGBench's cube, scene, puzzle and pointmaze "
        "environments. Others need a trained policy."
    )


@dataclass
class _Oracle(ScriptedPolicy):
    """
    :param noise: How much noise
    :param p_random_action: Probability of a random action
    """

    noise: float
    p_random_action: float

    def __post_init__(self) -> None:
        check_in_range("noise", self.noise, 0.0)
        check_in_range("p_random_action", self.p_random_action, 0.0, 1.0)

    @property
    def name(self) -> str:
        return repr(self)

    def reset(self, observation: Any, info: dict[str, Any], env: gym.Env, rng: np.random.Generator) -> None:
        self._env: Any = env.unwrapped
        self._rng = rng

    def _bounded(self, action: np.ndarray) -> np.ndarray:
        """:return: The action, or a random one, in its bounds"""
        if self._rng.random() < self.p_random_action:
            action = self._rng.uniform(-1.0, 1.0, action.shape)
        return np.clip(action, -1.0, 1.0)

    def __getstate__(self) -> dict[str, Any]:
        # Without the environment of the last episode
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass
class ManipulationOracle(_Oracle):
    """
    Has OGBench's oracle for whatever the present target is about move it there.

    :param noise: How much noise
    :param p_random_action: Probability of a random action
    :param kind: One of KINDS
    """

    kind: str

    env_kwargs: ClassVar[Mapping[str, Any]] = MappingProxyType({"mode": "data_collection", "terminate_at_goal": False})

    def check(self, env: gym.Env) -> None:
        if getattr(env.unwrapped, "_mode", None) != "data_collection":
            raise ValueError(
                f"OGBench's oracles need a manipulation environment with mode='data_collection', got {env}: give "
                "collect() its id, or make it with mode='data_collection' and terminate_at_goal=False."
            )

    def reset_options(self, env: gym.Env, rng: np.random.Generator) -> None:
        # A scene keeps targets of other kinds from earlier episodes, which its infos would show
        scene: Any = env.unwrapped
        if hasattr(scene, "_target_drawer_pos"):
            scene._target_button = 0
            scene._target_button_states[:] = 0
            scene._target_drawer_pos = scene._target_window_pos = 0.0
            scene.model.site("drawer_handle_center_target").pos[1] = 0.0
            scene.model.site("window_handle_center_target").pos[0] = 0.0

    def reset(self, observation: Any, info: dict[str, Any], env: gym.Env, rng: np.random.Generator) -> None:
        super().reset(observation, info, env, rng)
        self._oracles = self._make_oracles()
        self._noise_of_episode = self._rng.uniform(0.0, self.noise)
        n_cubes = getattr(self._env, "_num_cubes", 0)
        self._p_stack = self._rng.uniform(*STACKING_RANGES.get(n_cubes, (0.5, 0.5)))
        self._set_out(observation, info)

    def _set_out(self, observation: Any, info: dict[str, Any]) -> None:
        self._oracle = self._oracles[info["privileged/target_task"]]
        self._oracle.reset(observation, info)

    def select_action(self, observation: Any, info: dict[str, Any]) -> np.ndarray:
        if self._oracle.done:
            self._env.set_new_target(return_info=False, p_stack=self._p_stack)
            info = self._env.get_reset_info()
            self._set_out(observation, info)
        action = np.asarray(self._oracle.select_action(observation, info))
        if self.kind == "markov":
            action = action + self._rng.normal(0.0, self._noise_of_episode * NOISE_SCALES)
        return self._bounded(action)

    def _make_oracles(self) -> dict[str, Any]:
        """:return: Oracles by the target's kind; a puzzle, which has nothing to grasp, keeps the gripper closed"""
        has_cubes, has_buttons = hasattr(self._env, "_num_cubes"), hasattr(self._env, "_num_buttons")
        kwargs = {"env": self._env, "noise": self.noise} if self.kind == "plan" else {"env": self._env}

        def make(target: str, **more: Any) -> Any:
            module = import_module(f"ogbench.manipspace.oracles.{self.kind}.{target}_{self.kind}")
            return getattr(module, f"{target.title()}{self.kind.title()}Oracle")(**kwargs, **more)

        oracles = {"cube": make("cube")} if has_cubes else {}
        if has_buttons:
            oracles["button"] = make("button", gripper_always_closed=not has_cubes)
        if has_cubes and has_buttons:
            oracles |= {"drawer": make("drawer"), "window": make("window")}
        return oracles


@dataclass
class PointMazeOracle(_Oracle):
    """
    Goes the shortest way through the cells of a maze, with Gaussian noise on every action.

    :param noise: Its standard deviation
    :param p_random_action: Probability of a random action
    """

    env_kwargs: ClassVar[Mapping[str, Any]] = MappingProxyType({"terminate_at_goal": False})

    def check(self, env: gym.Env) -> None:
        if not hasattr(env.unwrapped, "get_oracle_subgoal"):
            raise ValueError(f"OGBench's maze oracle needs one of its mazes, got {env}.")

    def reset_options(self, env: gym.Env, rng: np.random.Generator) -> dict[str, Any]:
        """:return: A start and a goal anywhere in the maze; environments of a single task have their own"""
        start, goal = rng.choice(_free_cells(env.unwrapped), 2, replace=False).tolist()
        return {"task_info": {"init_ij": tuple(start), "goal_ij": tuple(goal)}}

    def select_action(self, observation: Any, info: dict[str, Any]) -> np.ndarray:
        # Only when a step has said so: some environments find out at the beginning of the next one
        if info.get("success", False):
            self._env.set_goal(
                goal_xy=self._env.add_noise(self._env.ij_to_xy(self._rng.choice(_free_cells(self._env))))
            )
        position, goal = self._env.get_xy(), np.asarray(self._env.cur_goal_xy)
        if self._env.xy_to_ij(position) == self._env.xy_to_ij(goal):
            way = goal - position
        else:
            way = self._env.get_oracle_subgoal(position, goal)[0] - position
        direction = way / max(float(np.linalg.norm(way)), 1e-6)
        return self._bounded(direction + self._rng.normal(0.0, self.noise, direction.shape))


def _free_cells(maze: Any) -> np.ndarray:
    """:return: Row and column of each cell without a wall, shape (n, 2)"""
    return np.argwhere(maze.maze_map == 0)
