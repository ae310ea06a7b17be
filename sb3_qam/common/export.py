"""A policy as an ONNX file: raw observations and noise in, actions of the environment out."""

import copy
import io
import json
import math
import os
import warnings
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_qam.common.noise import SamplingNoise
from sb3_qam.common.policies import BaseFlowPolicy, OfflineToOnlinePolicy
from sb3_qam.runtime import METADATA_KEY, NOISE_NAMES, ChunkExecution
from sb3_qam.utils.atomic import atomic_write
from sb3_qam.utils.checks import check_positive_int
from sb3_qam.utils.nested import map_observations
from sb3_qam.version import __version__

# LayerNorm and GELU have operators of their own from here on
OPSET_VERSION = 20
# Those of torchdiffeq whose steps do not depend on what they compute
TRACEABLE_METHODS = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams")
# Actions are compared for other observations, and another number of them, than the file was made with
N_TRACED, N_COMPARED = 2, 5
TOLERANCE = 1e-4


class Sampler(nn.Module):
    """
    What acts in a policy, as a function of tensors alone: the observations as the environment gives them, and the
    actions as it takes them.

    :param policy: The policy. One with a flow makes actions from noise, another one from the observations alone
    :param vec_normalize: Whose statistics normalize the observations, as they are now; ``None`` for none
    :raises ValueError: if these are of other observations than the policy's
    """

    low: th.Tensor
    high: th.Tensor

    def __init__(self, policy: OfflineToOnlinePolicy, vec_normalize: VecNormalize | None = None) -> None:
        super().__init__()
        assert isinstance(policy.action_space, spaces.Box)  # for mypy
        self.policy = policy
        shape = policy.action_space.shape
        self.action_shape = shape if policy.chunk_size == 1 else (policy.chunk_size, *shape)
        for name in ("low", "high"):
            bound = th.as_tensor(getattr(policy.action_space, name), dtype=th.float32, device=policy.device)
            self.register_buffer(name, bound, persistent=False)
        self.space = policy.observation_space
        # Mean, standard deviation and limit by key, in the float64 that VecNormalize computes with
        self.statistics: dict[str, tuple[np.ndarray, np.ndarray, float]] = {}
        if vec_normalize is not None and vec_normalize.norm_obs:
            self.space = vec_normalize.venv.observation_space
            rms = vec_normalize.obs_rms
            for key, each in (rms if isinstance(rms, dict) else {"observation": rms}).items():
                deviation = np.sqrt(each.var + vec_normalize.epsilon)
                self.statistics[key] = (each.mean, deviation, vec_normalize.clip_obs)
        own, given = (
            {key: part.shape for key, part in _parts(space).items()} for space in (policy.observation_space, self.space)
        )
        if own != given:
            raise ValueError(
                f"vec_normalize has observations of {self.space}, and the policy of {policy.observation_space}: use "
                "the one that the model was trained with."
            )

    def example_inputs(self, batch_size: int, seed: int = 0) -> dict[str, th.Tensor]:
        """
        :param batch_size: Number of observations
        :param seed: Seed of the observations and the noise
        :return: What :meth:`forward` takes, by the names of the file's inputs
        :raises ValueError: if a key of the observations is one of the other names
        """
        # A copy, as the generator of the model's own is part of its random state
        space = copy.deepcopy(self.space)
        space.seed(seed)
        samples = [space.sample() for _ in range(batch_size)]
        stacked = map_observations(lambda *parts: np.stack(parts), *samples)
        inputs = {}
        for key, part in (stacked if isinstance(stacked, dict) else {"observation": stacked}).items():
            # Networks compute in float32, and VecNormalize does not
            as_float32 = part.dtype == np.float64 and key not in self.statistics
            inputs[key] = th.as_tensor(part.astype(np.float32) if as_float32 else part, device=self.policy.device)
        reserved = inputs.keys() & {*NOISE_NAMES, "action", ""}
        if reserved:
            raise ValueError(f"The observation keys {sorted(reserved)} are names of the file's own: rename them.")
        generator = th.Generator().manual_seed(seed)
        noise: tuple[th.Tensor | None, ...] = ()
        if isinstance(self.policy, BaseFlowPolicy):
            noise = self.policy.draw_noise(
                batch_size, lambda *shape: th.randn(shape, generator=generator).to(self.policy.device)
            )
        # As many kinds of noise as the head takes
        return inputs | {name: kind for name, kind in zip(NOISE_NAMES, noise, strict=False) if kind is not None}

    def forward(self, *inputs: th.Tensor) -> th.Tensor:
        """
        :param inputs: Observations, one tensor for each key; noise; noise for edits, where there are any
        :return: Actions within the bounds, as the file gives them
        """
        keys = list(_parts(self.space))
        parts = {key: self._normalize(key, part) for key, part in zip(keys, inputs, strict=False)}
        observations: PyTorchObs = parts if isinstance(self.space, spaces.Dict) else parts["observation"]
        if isinstance(self.policy, BaseFlowPolicy):
            scaled = self.policy.sample_actions(observations, SamplingNoise(*inputs[len(keys) :]))
        else:
            scaled = self.policy._predict(observations, deterministic=True)
        return self.low + 0.5 * (scaled.view(-1, *self.action_shape) + 1) * (self.high - self.low)

    def _normalize(self, key: str, part: th.Tensor) -> th.Tensor:
        if key not in self.statistics:
            return part
        mean, deviation, limit = self.statistics[key]
        of_array = partial(th.as_tensor, dtype=th.float64, device=part.device)
        return ((part.double() - of_array(mean)) / of_array(deviation)).clamp(-limit, limit).float()

    def metadata(self) -> dict[str, Any]:
        """:return: What the runtime has to know, as JSON has it"""
        policy, space = self.policy, self.policy.action_space
        assert isinstance(space, spaces.Box)  # for mypy
        observations: dict[str, dict[str, Any]] = {}
        dtypes = {name: str(each.cpu().numpy().dtype) for name, each in self.example_inputs(1).items()}
        for key, part in _parts(self.space).items():
            observations[key] = {"shape": part.shape, "dtype": dtypes[key], "is_image": is_image_space(part)}
            if key in self.statistics:
                mean, deviation, limit = self.statistics[key]
                observations[key] |= {"mean": mean.tolist(), "std": deviation.tolist(), "clip": limit}
        return {
            "sb3_qam_version": __version__,
            "is_dict": isinstance(self.space, spaces.Dict),
            "observations": observations,
            "observation_space": str(self.space),
            "action_space": {
                "shape": space.shape,
                "dtype": str(space.dtype),
                "low": space.low.tolist(),
                "high": space.high.tolist(),
            },
            "chunk_size": policy.chunk_size,
            # Numbers of NumPy are no JSON
            "replan_every": None if policy.replan_every is None else int(policy.replan_every),
            "ensemble_decay": None if policy.ensemble_decay is None else float(policy.ensemble_decay),
            "flow_steps": getattr(policy, "flow_steps", None),
        }


def _parts(space: spaces.Space) -> dict[str, spaces.Space]:
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {"observation": space}


def export_onnx(
    model: BaseAlgorithm | OfflineToOnlinePolicy,
    path: str | os.PathLike[str],
    vec_normalize: VecNormalize | None = None,
    flow_steps: int | None = None,
) -> None:
    """
    Write a policy as an ONNX file, to act without PyTorch: ``sb3_qam/runtime.py``, one file that needs NumPy and
    onnxruntime alone, has its ``predict()``. The inputs of the file, every batch axis of any length:

    - ``observation``, or one of each key of a Dict: as the environment gives them, images channels first and in
      [0, 255]. Normalization, one-hot encoding and the like are part of the file
    - ``noise``, if the policy has a flow: standard normal, shape (best_of_n, batch, action_dim), action_dim being that
      of a whole chunk
    - ``edit_noise``, with QAM-E alone: standard normal, of the same shape

    The runtime makes the noise of ``predict(deterministic=True)``, a function of the observation's bits, for which ONNX
    has no operator.

    The output ``action`` is within the bounds of the action space, shape ``(batch, *action_shape)``, or
    ``(batch, chunk_size, *action_shape)`` where actions are chunked. What acts in the policy acts in the file:
    behavior or policy flow, the head behind it, and the best of the candidates. The metadata has what the runtime needs
    besides, as JSON: spaces, chunk size, the policy's ``replan_every`` and ``ensemble_decay``, version of the package.

    What onnxruntime makes of the file is compared with the policy's own actions before it gets its name.

    :param model: The model, or its policy alone
    :param path: The file, ``.onnx`` is appended where it has no suffix
    :param vec_normalize: Whose statistics normalize observations, by default that of the model's environment, if it has
        one. A policy alone, and a model that was loaded without environment, know of none
    :param flow_steps: Number of flow steps in the file, by default the policy's. A warning says what fewer cost
    :raises ImportError: if onnx or onnxruntime is not installed
    :raises OSError: if the file cannot be written
    :raises ValueError: if the ``ode_method`` or a features extractor cannot be exported, or gives other actions in
        onnxruntime than here, or a key of the observations is a name of the file's own, or ``vec_normalize`` is of
        other observations, or an argument or a setting of the policy is out of range
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'export_onnx() needs onnx and onnxruntime: pip install "sb3-qam[onnx]" ({error}).'
        ) from error
    if vec_normalize is None and isinstance(model, BaseAlgorithm):
        vec_normalize = model.get_vec_normalize_env()
    policy = model.policy if isinstance(model, BaseAlgorithm) else model
    if not isinstance(policy, OfflineToOnlinePolicy):
        raise ValueError(
            f"export_onnx(model, path) takes models of this package and their policies, got {type(model).__name__}."
        )
    if vec_normalize is not None and not isinstance(vec_normalize, VecNormalize):
        raise ValueError(
            "vec_normalize must be a VecNormalize, such as VecNormalize.load(path, venv) makes of a file, got "
            f"{vec_normalize!r}."
        )
    if vec_normalize is None and getattr(model, "_observations_normalized", False):
        warnings.warn(
            "The model was trained on observations that VecNormalize normalized, and the file will not normalize them: "
            "pass vec_normalize=VecNormalize.load(path, venv), or load the model with its environment."
        )
    _check_ode_method(policy)
    ChunkExecution(policy.chunk_size, policy.replan_every, policy.ensemble_decay)
    path = Path(path)
    if not path.name or path.is_dir():
        raise ValueError(f"path must be that of a file, got {str(path)!r}.")
    path = path if path.suffix else path.with_suffix(".onnx")
    sampler = Sampler(policy, vec_normalize)
    traced, compared = (sampler.example_inputs(n, seed=n) for n in (N_TRACED, N_COMPARED))
    modes, own_steps = [(module, module.training) for module in policy.modules()], getattr(policy, "flow_steps", 0)
    if flow_steps is not None:
        check_positive_int("flow_steps", flow_steps)
        if own_steps == 0:
            raise ValueError(f"{type(policy).__name__} has no flow, leave flow_steps out.")
        if flow_steps < own_steps:
            warnings.warn(
                f"flow_steps={flow_steps} instead of {own_steps} is faster and may cost success: that of the published "
                "runs was 43% with 20, 40% with 10, 13% with 3 and 3% with 1. Evaluate with "
                f"model.flow_steps = {flow_steps} first."
            )
        policy.set_hyperparameter("flow_steps", flow_steps)
    sampler.eval()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as unfinished:
            actions = _write_and_run(sampler, traced, compared, unfinished)
            with th.no_grad():
                _check_same(actions, sampler(*compared.values()).cpu().numpy(), sampler)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error}. Make room there, or choose another folder.") from error
    finally:
        if flow_steps is not None:
            policy.set_hyperparameter("flow_steps", own_steps)
        for module, mode in modes:
            module.training = mode


def _check_ode_method(policy: OfflineToOnlinePolicy) -> None:
    if isinstance(policy, BaseFlowPolicy) and policy.ode_method not in TRACEABLE_METHODS:
        raise ValueError(
            f"ode_method={policy.ode_method!r} cannot be exported to ONNX, where the number of steps is fixed. Set "
            f"policy.ode_method to one of {', '.join(map(repr, TRACEABLE_METHODS))}, which solve the same equation."
        )


def _write_and_run(
    sampler: Sampler, traced: dict[str, th.Tensor], compared: dict[str, th.Tensor], path: Path
) -> np.ndarray:
    """
    :param sampler: What to write
    :param traced: Inputs to follow while writing
    :param compared: Inputs for the file
    :param path: The file
    :return: Actions that onnxruntime makes of these
    :raises ValueError: if one of the two cannot
    """
    import onnx
    import onnxruntime

    axes = {name: {1 if name in NOISE_NAMES else 0: "batch"} for name in traced}
    try:
        # The newer exporter cannot trace torchdiffeq, which branches on the values of its times. What tracing follows
        # by mistake is found by the comparison, and what the exporter prints before an error is in the error
        with warnings.catch_warnings(), th.no_grad(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            th.onnx.export(
                sampler,
                tuple(traced.values()),
                path,
                input_names=list(traced),
                output_names=["action"],
                dynamic_axes={**axes, "action": {0: "batch"}},
                opset_version=OPSET_VERSION,
                dynamo=False,
            )
        file = onnx.load(path)
        onnx.helper.set_model_props(file, {METADATA_KEY: json.dumps(sampler.metadata())})
        onnx.save(file, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (actions,) = session.run(None, {name: part.cpu().numpy() for name, part in compared.items()})
    except OSError:
        # Of the file, and not of what is written
        raise
    except Exception as error:
        # The exporter, onnxruntime and an extractor's own code have no error in common
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"This policy cannot be exported to ONNX: {reason} Usual cause: an operation of the features extractor "
            f"{sampler.policy.features_extractor_class.__name__} that ONNX does not have, or that takes the size of a "
            "batch for a constant."
        ) from error
    return actions


def _check_same(actions: np.ndarray, expected: np.ndarray, sampler: Sampler) -> None:
    """:raises ValueError: if actions of the file are not those of the policy"""
    if not np.isfinite(expected).all():
        raise ValueError("The policy's actions are not finite: its parameters have diverged, export a checkpoint.")
    scale = (sampler.high - sampler.low).cpu().numpy() / 2
    difference = np.abs((actions - expected) / scale).max() if actions.shape == expected.shape else math.inf
    if not difference <= TOLERANCE:
        raise ValueError(
            f"In onnxruntime the actions differ from the policy's by {difference:.2g} of half their range, expected at "
            f"most {TOLERANCE}: the features extractor {sampler.policy.features_extractor_class.__name__} does "
            "something that depends on the batch, or that ONNX does in another way."
        )
