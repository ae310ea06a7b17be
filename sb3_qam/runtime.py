"""
Act with a file of ``export_onnx()``, by NumPy and onnxruntime alone: this file can be copied to where there is neither
PyTorch nor this package.

    policy = OnnxPolicy("policy.onnx")
    action, state = policy.predict(observation, state, episode_start)

The package itself takes from here how chunks are executed, and the noise of deterministic actions.
"""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

# Of the SplitMix64 generator (Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195)
GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIXING = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
LAST_SHIFT = np.uint64(31)


# Of the metadata of a file, JSON
METADATA_KEY = "sb3_qam"
# The inputs of a file that are noise, in the order in which they are drawn
NOISE_NAMES = ("noise", "edit_noise")
FLOAT32_MAX = float(np.finfo(np.float32).max)


class ChunkState(NamedTuple):
    """
    The chunk that each environment is in.

    :param actions: Whole chunks in the bounds of the action space, shape ``(n_envs, chunk_size, *action_shape)``
    :param position: How many of its actions each environment has executed, shape (n_envs,)
    :param n_averaged: Of how many overlapping chunks each action is the average, shape (n_envs, chunk_size)
    """

    actions: np.ndarray
    position: np.ndarray
    n_averaged: np.ndarray


@dataclass(frozen=True)
class ChunkExecution:
    """
    How chunks of actions are executed: by default open loop, each to its end.

    :param chunk_size: Number h of actions in a chunk
    :param replan_every: After how many actions, from 1 to h, a new chunk takes the place of the rest (receding
        horizon). ``None`` for h, and for 1 with ``ensemble_decay``
    :param ensemble_decay: k of temporal ensembling (ACT, https://arxiv.org/abs/2304.13705, which has 0.01): the action
        is the average of what all chunks say that reach this far, the i-th oldest with weight exp(-k i), from 0 on.
        ``None`` for none; below 0 the newest counts most
    :raises ValueError: if one of them is out of range
    """

    chunk_size: int
    replan_every: int | None = None
    ensemble_decay: float | None = None

    def __post_init__(self) -> None:
        every, decay = self.replan_every, self.ensemble_decay
        if every is not None and (isinstance(every, bool) or every not in range(1, self.chunk_size + 1)):
            raise ValueError(
                f"replan_every must be an integer from 1 to chunk_size={self.chunk_size}, or None to execute chunks "
                f"to their end, got {every!r}."
            )
        if decay is not None and not (isinstance(decay, (int, float)) and math.isfinite(decay)):
            raise ValueError(f"ensemble_decay must be a finite number, or None for no ensembling, got {decay!r}.")

    def __call__(
        self,
        make_chunks: Callable[[np.ndarray], np.ndarray],
        n_envs: int,
        action_shape: tuple[int, ...],
        state: Any = None,
        episode_start: Any = None,
    ) -> tuple[np.ndarray, ChunkState]:
        """
        :param make_chunks: Makes whole chunks for those of the environments whose numbers it is given
        :param n_envs: Number of environments
        :param action_shape: Shape of one action
        :param state: What the last call returned, ``None`` to begin new chunks
        :param episode_start: Whether each environment has just been reset, shape (n_envs,)
        :return: An action of each environment, and the next state
        :raises ValueError: if the state or ``episode_start`` is not one of as many environments
        """
        size = self.chunk_size
        actions, position, n_averaged = self._check_state(state, n_envs, (size, *action_shape))
        if episode_start is not None:
            if np.shape(episode_start) != (n_envs,):
                raise ValueError(
                    f"episode_start must have one entry for each of {n_envs} environment(s), got {episode_start!r}."
                )
            position[np.asarray(episode_start, dtype=bool)] = size
        every = self.replan_every or (size if self.ensemble_decay is None else 1)
        rows = np.flatnonzero(position >= every)
        if len(rows) > 0:
            chunks = np.asarray(make_chunks(rows)).reshape(len(rows), size, *action_shape)
            counts = np.ones((len(rows), size), int)
            if self.ensemble_decay is not None:
                # What earlier chunks say of the steps of the new one, as far as they reach
                steps = position[rows, None] + np.arange(size)
                index = rows[:, None], np.minimum(steps, size - 1)
                counts += np.where(steps < size, n_averaged[index], 0)
                # The weight of the newest of n chunks among all n
                with np.errstate(over="ignore"):
                    weights = 1 / np.cumsum(np.exp(self.ensemble_decay * np.arange(size + 1)))
                weight = weights.astype(np.float32)[counts - 1].reshape(*counts.shape, *[1] * len(action_shape))
                # Between the two, whatever is lost in rounding
                bounds = np.minimum(actions[index], chunks), np.maximum(actions[index], chunks)
                chunks = np.clip((1 - weight) * actions[index] + weight * chunks, *bounds)
            # Of float64 spaces, whose bounds float32 may miss
            actions = actions.astype(np.result_type(actions, chunks), copy=False)
            actions[rows], n_averaged[rows], position[rows] = chunks, counts, 0
        return actions[np.arange(n_envs), position], ChunkState(actions, position + 1, n_averaged)

    @staticmethod
    def _check_state(state: Any, n_envs: int, chunk_shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """:return: A copy, in which every environment needs a new chunk where there is no state"""
        size = chunk_shape[0]
        if state is None:
            return np.zeros((n_envs, *chunk_shape), np.float32), np.full(n_envs, size), np.ones((n_envs, size), int)
        expected = [(n_envs, *chunk_shape), (n_envs,), (n_envs, size)]
        parts = list(state) if isinstance(state, (tuple, list)) else [state]
        if len(parts) == 2 and isinstance(parts[1], tuple):
            raise ValueError("state must be the second part of what predict() returned, got both.")
        shapes = [np.shape(part) for part in parts]
        in_range = shapes == expected and (
            np.isin(parts[1], np.arange(size + 1)).all() and np.isin(parts[2], np.arange(1, size + 1)).all()
        )
        if not in_range:
            raise ValueError(
                f"state must be what predict() returned for the same {n_envs} environment(s), arrays of the shapes "
                f"{expected}, the second one counting from 0 to {size} and the third one from 1, got "
                f"{shapes if shapes != expected else parts[1:]}. Pass state=None to begin new chunks."
            )
        return np.array(parts[0]), np.array(parts[1], dtype=int), np.array(parts[2], dtype=int)


class OnnxPolicy:
    """
    A policy in a file of ``export_onnx()``. It acts as the ``predict()`` of the model does. The settings
    ``replan_every`` and ``ensemble_decay`` are those in the file, and may be set at any time.

    :param path: The file
    :param seed: Seed of the noise of sampled actions
    :param sess_options: As of ``onnxruntime.InferenceSession``
    :param providers: As of ``onnxruntime.InferenceSession``, by default the CPU's
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if the file is not one of ``export_onnx()``, or incomplete
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        seed: int | None = None,
        sess_options: Any = None,
        providers: Sequence[Any] = ("CPUExecutionProvider",),
    ) -> None:
        import onnxruntime

        if not os.path.isfile(path):
            raise FileNotFoundError(f"There is no file {path}.")
        try:
            self.session = onnxruntime.InferenceSession(os.fspath(path), sess_options, list(providers))
        except Exception as error:
            # Each kind of damage has a class of its own, below Exception alone
            raise ValueError(
                f"onnxruntime does not load {path}, expected a file that export_onnx() wrote: {error}"
            ) from error
        stored = self.session.get_modelmeta().custom_metadata_map
        if METADATA_KEY not in stored:
            raise ValueError(f"{path} does not say how to act with it: write it again by export_onnx() of sb3-qam.")
        self.metadata: dict[str, Any] = json.loads(stored[METADATA_KEY])
        self.chunk_size: int = self.metadata["chunk_size"]
        self.replan_every: int | None = self.metadata["replan_every"]
        self.ensemble_decay: float | None = self.metadata["ensemble_decay"]
        action_space = self.metadata["action_space"]
        self.action_shape = tuple(action_space["shape"])
        self._bounds = [np.array(action_space[name], action_space["dtype"]) for name in ("low", "high")]
        self._observations: dict[str, dict[str, Any]] = self.metadata["observations"]
        for part in self._observations.values():
            part["shape"] = tuple(part["shape"])
            part.update({name: np.array(part[name]) for name in ("mean", "std") if name in part})
        # (n_samples, action_dim); the axis between them is the batch
        self._noise_shapes = {
            each.name: (each.shape[0], each.shape[2]) for each in self.session.get_inputs() if each.name in NOISE_NAMES
        }
        self._generator = np.random.default_rng(seed)

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Get the action for the observation of one environment, or for those of several.

        :param observation: As the environment gives it: not normalized, images with their channels first or last
        :param state: What the last call returned, where actions are chunked
        :param episode_start: Whether each environment has just been reset, shape (n_envs,)
        :param deterministic: Whether the noise that an action is made from is a function of the observation
        :return: The action(s), and the next state
        :raises ValueError: if an observation is not finite, or of another shape, or the state not one of as many
            environments, or an argument or a setting is out of range
        :raises FloatingPointError: if an action is not finite, as of parameters that have diverged
        """
        if deterministic not in (True, False):
            raise ValueError(f"deterministic must be True or False, got {deterministic!r}.")
        if isinstance(observation, tuple) and len(observation) == 2 and isinstance(observation[1], dict):
            raise ValueError("The observation must not be the (observation, info) of reset(): take its first part.")
        parts, of_several = self._batch(observation)
        n_envs = len(next(iter(parts.values())))

        def act(rows: np.ndarray) -> np.ndarray:
            return self._act({name: part[rows] for name, part in parts.items()}, deterministic)

        execution = ChunkExecution(self.chunk_size, self.replan_every, self.ensemble_decay)
        if self.chunk_size == 1:
            actions = act(np.arange(n_envs))
        else:
            actions, state = execution(act, n_envs, self.action_shape, state, episode_start)
        return actions if of_several else actions[0], state

    def _batch(self, observation: Any) -> tuple[dict[str, np.ndarray], bool]:
        """:return: Arrays of shape (n_envs, ...) by input of the file, and whether that is how they came"""
        given = observation if self.metadata["is_dict"] else {"observation": observation}
        if not isinstance(given, dict) or given.keys() != self._observations.keys():
            got = sorted(given, key=str) if isinstance(given, dict) else type(given).__name__
            raise ValueError(f"The observation must be a dict with the keys {list(self._observations)}, got {got}.")
        parts, lengths = {}, set()
        for name, spec in self._observations.items():
            part, shape = _numbers(name, given[name]), spec["shape"]
            n_axes = part.ndim - len(shape)
            if spec["is_image"] and part.ndim >= 3 and part.shape[n_axes:] != shape:
                part = np.moveaxis(part, -1, -3)
            if n_axes not in (0, 1) or part.shape[n_axes:] != shape:
                of_several = f"({', '.join(map(str, ('n_envs', *shape)))})"
                raise ValueError(f"'{name}' must have the shape {shape}, or {of_several}, got {part.shape}.")
            lengths.add(len(part) if n_axes == 1 else None)
            part = parts[name] = part if n_axes == 1 else part[None]
            if part.dtype.kind == "f" and not (is_finite := np.abs(part) <= FLOAT32_MAX).all():
                env, *position = np.argwhere(~is_finite)[0].tolist()
                raise ValueError(f"'{name}' of environment {env} is not finite: {part[~is_finite][0]} at {position}.")
        if len(lengths) > 1:
            raise ValueError(f"The parts of the observation are of {lengths} environments, None being a single one.")
        return parts, None not in lengths

    def _act(self, parts: dict[str, np.ndarray], deterministic: bool) -> np.ndarray:
        """:return: Actions, or whole chunks, of a batch of observations"""
        feed = {name: part.astype(self._observations[name]["dtype"], copy=False) for name, part in parts.items()}
        n_envs = len(next(iter(feed.values())))
        noise = None
        if deterministic:
            noise = ObservationNoise({name: self._normalize(name, part) for name, part in feed.items()})
        for name, (n_samples, action_dim) in self._noise_shapes.items():
            if noise is None:
                feed[name] = self._generator.standard_normal((n_samples, n_envs, action_dim), np.float32)
            else:
                feed[name] = noise(n_samples, action_dim)
        actions = self.session.run(["action"], feed)[0]
        if not np.isfinite(actions).all():
            raise FloatingPointError(
                f"The action is not finite: {actions}. No action was taken. Use another checkpoint."
            )
        # The file computes in float32, which may miss the bounds by rounding
        return np.clip(actions.astype(self._bounds[0].dtype, copy=False), *self._bounds)

    def _normalize(self, name: str, part: np.ndarray) -> np.ndarray:
        """:return: What the policy in the file sees, to the bit, from which noise is made"""
        spec = self._observations[name]
        if "mean" not in spec:
            return part
        return np.clip((part - spec["mean"]) / spec["std"], -spec["clip"], spec["clip"]).astype(np.float32)


def _numbers(name: str, values: Any) -> np.ndarray:
    """:return: An array of these, which are real numbers"""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"'{name}' must be one array of numbers, and its parts differ in shape: {error}") from error
    if array.dtype.kind not in "biuf":
        # Such as a sensor that gave None
        raise ValueError(f"'{name}' must hold numbers, got {values!r}.")
    return array


class ObservationNoise:
    """
    Standard normal noise that is a function of the observation alone: the same in any batch, at any position, on any
    machine, whatever was drawn before. Observations that differ in one bit get noise that is as if drawn independently.

    A hash of the observation's float32 bits is the key of a counter-based generator (SplitMix64), and Box-Muller makes
    normal numbers of its words.

    :param observations: Arrays of shape (batch, ...), by key where observations are Dicts, whose order does not matter.
        As a policy takes them: images channels first, in [0, 255]
    """

    def __init__(self, observations: np.ndarray | dict[str, np.ndarray]) -> None:
        if not isinstance(observations, dict):
            observations = {"": observations}
        rows = [observations[key].reshape(len(observations[key]), -1) for key in sorted(observations)]
        values = (rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1, dtype=np.float32)).astype(np.float32)
        # Adding 0 makes one zero of the two that floating-point numbers have
        values += np.float32(0)
        # Multilinear hashing: the sum of each value's bits times a random number of its position
        self._keys = _mix(values.view(np.uint32) @ _multipliers(values.shape[1]))
        self._n_drawn = 0

    def __call__(self, n_samples: int, action_dim: int) -> np.ndarray:
        """
        :param n_samples: Number of samples for each observation
        :param action_dim: Number of action dimensions
        :return: Noise that no earlier call gave, float32, shape (n_samples, batch, action_dim)
        """
        n_values = n_samples * action_dim
        words = _mix(self._keys[:, None] + _counters(self._n_drawn, n_values))
        self._n_drawn += n_values
        # The two halves of a word, in (0, 1)
        uniform = words.view(np.uint32) * 2.0**-32
        uniform += 2.0**-33
        # Box-Muller: a radius and an angle
        radius = np.sqrt(-2 * np.log(uniform[:, ::2]))
        noise = (radius * np.cos(2 * np.pi * uniform[:, 1::2])).astype(np.float32)
        return noise.reshape(-1, n_samples, action_dim).swapaxes(0, 1)


@lru_cache(maxsize=64)
def _counters(n_skipped: int, n_values: int) -> np.ndarray:
    return np.arange(n_skipped + 1, n_skipped + n_values + 1, dtype=np.uint64) * GOLDEN_GAMMA


@lru_cache(maxsize=64)
def _multipliers(n_values: int) -> np.ndarray:
    return _mix(_counters(0, n_values)) | np.uint64(1)


def _mix(words: np.ndarray) -> np.ndarray:
    """:return: The output function of SplitMix64, a bijection in which every bit depends on every bit"""
    for shift, multiplier in MIXING:
        words = (words ^ (words >> shift)) * multiplier
    return words ^ (words >> LAST_SHIFT)
