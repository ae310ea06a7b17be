"""The behavior flow of one model, to be loaded into another."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN

from sb3_qam.networks.layers import TanhGELU
from sb3_qam.utils.checks import space_difference
from sb3_qam.utils.names import plain

PREFIX = "behavior_flow"
# Extractors that a policy class has by itself
DEFAULT_EXTRACTORS = (None, FlattenExtractor, CombinedExtractor, NatureCNN)
# What makes of the same parameters another function, beside the spaces, and what it is by default
POLICY_KWARGS: dict[str, Any] = {
    "activation_fn": TanhGELU,
    "features_extractor_class": None,
    "features_extractor_kwargs": None,
    "normalize_images": True,
}


def _meaning(what: str, value: Any) -> Any:
    """:return: What can be compared of a value, also in another process, where a script has other classes"""
    if what == "activation_fn":
        return repr(value())
    if what == "features_extractor_class":
        return None if value in DEFAULT_EXTRACTORS else f"{value.__module__}.{value.__qualname__}"
    if what == "features_extractor_kwargs":
        return plain(value or {}) or repr(value)
    return value


@dataclass(frozen=True)
class Behavior:
    """
    A behavior flow.

    :param name: Names the model in errors
    :param parameters: Of the flow and its target, by their names in the policy
    :param context: What else the flow depends on, by name
    """

    name: str
    parameters: dict[str, th.Tensor]
    context: dict[str, Any]

    def check_fits(self, other: "Behavior") -> None:
        """
        :param other: The behavior flow whose place this one is to take
        :raises ValueError: naming the first thing in which they differ
        """
        for what, value in self.context.items():
            there = other.context[what]
            is_space = isinstance(value, spaces.Space)
            if (
                space_difference(value, there) is not None
                if is_space
                else _meaning(what, value) != _meaning(what, there)
            ):
                raise self._misfit(what, value, there)
        shapes, other_shapes = ({name: tuple(p.shape) for name, p in b.parameters.items()} for b in (self, other))
        for name in sorted(shapes | other_shapes):
            if shapes.get(name) != other_shapes.get(name):
                raise self._misfit(f"the shape of {name}", shapes.get(name), other_shapes.get(name))

    def _misfit(self, what: str, here: Any, there: Any) -> ValueError:
        return ValueError(
            f"The behavior flow of {self.name} does not fit this model: {what} is {here} there and {there} here. "
            "Use the same spaces, chunk_size and policy_kwargs of the flows."
        )


def read_behavior(source: Any, device: th.device) -> Behavior:
    """
    :param source: A model, or the path or file of a saved one
    :param device: Where to put the parameters
    :return: Its behavior flow
    :raises ValueError: if the file is not a saved model with a behavior flow
    :raises TypeError: if it is neither a model nor a path or file
    """
    if isinstance(source, (str, Path, io.IOBase)):
        name = f"'{source}'"
        data, parameters, _ = load_from_zip_file(source, device=device)  # type: ignore[arg-type]
        attributes: dict[str, Any] = data or {}
        policy_parameters: dict[str, Any] = parameters.get("policy", {})  # type: ignore[assignment]
    elif hasattr(source, "policy") and hasattr(source, "policy_kwargs"):
        name = f"the given {type(source).__name__}"
        attributes, policy_parameters = vars(source), source.policy.state_dict()
    else:
        raise TypeError(f"Expected a QAM model or the path of a saved one, got {type(source).__name__}.")
    behavior = {key: value for key, value in policy_parameters.items() if key.startswith(PREFIX)}
    if not behavior or "policy_kwargs" not in attributes:
        raise ValueError(f"{name} is not a saved QAM model, as QAM.save() writes it: it has no behavior flow.")
    context = {key: attributes[key] for key in ("observation_space", "action_space", "chunk_size")}
    context |= {key: attributes["policy_kwargs"].get(key, default) for key, default in POLICY_KWARGS.items()}
    return Behavior(name, behavior, context)
