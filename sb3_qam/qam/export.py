"""The sampler of a policy as an ONNX file: observations and noise in, actions of the environment out."""

import copy
import io
import math
import os
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_qam.common.buffers import map_observations, to_tensor
from sb3_qam.common.noise import SamplingNoise
from sb3_qam.qam.policies import FlowPolicy
from sb3_qam.utils.atomic import atomic_write

# LayerNorm and GELU have operators of their own from here on
OPSET_VERSION = 20
# Those of torchdiffeq whose steps do not depend on what they compute
TRACEABLE_METHODS = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams")
# In the order of SamplingNoise. Their batch axis is the second one, after that of the candidates
NOISE_NAMES = ("noise", "edit_noise")
# Actions are compared for other observations, and another number of them, than the file was made with
N_TRACED, N_COMPARED = 2, 5
TOLERANCE = 1e-4


class Sampler(nn.Module):
    """
    ``policy.sample_actions`` as a function of tensors alone, and the actions as the environment takes them.

    :param policy: The policy
    :param keys: Keys of Dict observations, ``None`` for others
    """

    low: th.Tensor
    high: th.Tensor

    def __init__(self, policy: FlowPolicy, keys: list[str] | None) -> None:
        super().__init__()
        assert isinstance(policy.action_space, spaces.Box)  # for mypy
        self.policy = policy
        self.keys = keys
        shape = policy.action_space.shape
        self.action_shape = shape if policy.chunk_size == 1 else (policy.chunk_size, *shape)
        for name in ("low", "high"):
            bound = th.as_tensor(getattr(policy.action_space, name), dtype=th.float32, device=policy.device)
            self.register_buffer(name, bound, persistent=False)

    def forward(self, *inputs: th.Tensor) -> th.Tensor:
        """
        :param inputs: Observations, one tensor for each key; noise; noise for edits, where there are any
        :return: Actions within the bounds, as the file gives them
        """
        n_parts = 1 if self.keys is None else len(self.keys)
        parts, noise = inputs[:n_parts], inputs[n_parts:]
        observations: PyTorchObs = parts[0] if self.keys is None else dict(zip(self.keys, parts, strict=True))
        scaled = self.policy.sample_actions(observations, SamplingNoise(*noise))
        return self.low + 0.5 * (scaled.view(-1, *self.action_shape) + 1) * (self.high - self.low)


def export_onnx(policy: FlowPolicy, path: str | os.PathLike[str]) -> None:
    """
    Write the sampler as an ONNX file. Its inputs, every batch axis of any length:

    - ``observation``, or one of each key of a Dict: as the policy takes them, images channels first and in [0, 255];
      what ``VecNormalize`` and other wrappers do is not part of it
    - ``noise``: standard normal, shape (best_of_n, batch, action_dim), action_dim being that of a whole chunk
    - ``edit_noise``, with QAM-E alone: standard normal, of the same shape

    With the noise that :class:`~sb3_qam.networks.observation_noise.ObservationNoise` makes of the observations,
    ``noise`` first, the file acts as ``predict(deterministic=True)`` does: ONNX has no operator for the bits of a
    number.

    The output ``action`` is within the bounds of the action space, shape ``(batch, *action_shape)``, or
    ``(batch, chunk_size, *action_shape)`` where actions are chunked. What acts in the policy acts in the file:
    behavior or policy flow, the head behind it, and the best of the candidates.

    What onnxruntime makes of the file is compared with the policy's own actions before it gets its name.

    :param policy: The policy
    :param path: The file, ``.onnx`` is appended where it has no suffix
    :raises ImportError: if onnx or onnxruntime is not installed
    :raises OSError: if the file cannot be written
    :raises ValueError: if the ``ode_method`` or a features extractor cannot be exported, or gives other actions in
        onnxruntime than here, or a key of the observations is a name of the file's own
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'export_onnx() needs onnx and onnxruntime: pip install "sb3-qam[onnx]" ({error}).'
        ) from error
    _check_ode_method(policy)
    path = Path(path)
    path = path if path.suffix else path.with_suffix(".onnx")
    space = policy.observation_space
    keys = list(space.spaces) if isinstance(space, spaces.Dict) else None
    traced, compared = (_example_inputs(policy, n, seed=n) for n in (N_TRACED, N_COMPARED))
    sampler = Sampler(policy, keys)
    modes = [(module, module.training) for module in policy.modules()]
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
        for module, mode in modes:
            module.training = mode


def _check_ode_method(policy: FlowPolicy) -> None:
    if policy.ode_method not in TRACEABLE_METHODS:
        raise ValueError(
            f"ode_method={policy.ode_method!r} cannot be exported to ONNX, where the number of steps is fixed. Set "
            f"policy.ode_method to one of {', '.join(map(repr, TRACEABLE_METHODS))}, which solve the same equation."
        )


def _example_inputs(policy: FlowPolicy, batch_size: int, seed: int) -> dict[str, th.Tensor]:
    """
    :param policy: The policy
    :param batch_size: Number of observations
    :param seed: Seed of the observations and the noise
    :return: What the sampler takes, by name
    """
    # A copy, as the generator of the model's own is part of its random state
    space = copy.deepcopy(policy.observation_space)
    space.seed(seed)
    samples = [space.sample() for _ in range(batch_size)]
    stacked = map_observations(lambda *parts: to_tensor(np.stack(parts), policy.device), *samples)
    inputs = dict(stacked) if isinstance(stacked, dict) else {"observation": stacked}
    reserved = inputs.keys() & {*NOISE_NAMES, "action"}
    if reserved:
        raise ValueError(f"The observation keys {sorted(reserved)} are names of the file's own: rename them.")
    generator = th.Generator().manual_seed(seed)
    noise = policy.draw_noise(batch_size, lambda *shape: th.randn(shape, generator=generator).to(policy.device))
    # As many kinds of noise as the head takes
    inputs |= {name: kind for name, kind in zip(NOISE_NAMES, noise, strict=True) if kind is not None}
    return inputs


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
    scale = (sampler.high - sampler.low).cpu().numpy() / 2
    difference = np.abs((actions - expected) / scale).max() if actions.shape == expected.shape else math.inf
    if not difference <= TOLERANCE:
        raise ValueError(
            f"In onnxruntime the actions differ from the policy's by {difference:.2g} of half their range, expected at "
            f"most {TOLERANCE}: the features extractor {sampler.policy.features_extractor_class.__name__} does "
            "something that depends on the batch, or that ONNX does in another way."
        )
