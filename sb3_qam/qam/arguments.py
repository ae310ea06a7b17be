"""The arguments of QAM: their ranges, and which exclude each other."""

from typing import Any

from sb3_qam.common.precision import check_precision
from sb3_qam.qam.adjoint_matching import ADJOINT_METHODS
from sb3_qam.utils.checks import check_in_range, check_one_of, check_positive_int

DEFAULT_INVERSE_TEMPERATURE = 3.0


def check_arguments(model: Any) -> None:
    """
    :param model: A QAM model before its networks are made. An inverse temperature of ``None`` becomes the default
    :raises ValueError: naming the first argument that is out of range, or two that exclude each other
    """
    if model.inverse_temperature is None:
        model.inverse_temperature = DEFAULT_INVERSE_TEMPERATURE if model.kl_budget is None else 1.0
    for name in ("flow_steps", "best_of_n"):
        check_positive_int(name, getattr(model, name))
    for name in ("inverse_temperature", "distill_coef", "value_penalty"):
        check_in_range(name, getattr(model, name), 0)
    # Scaled actions lie in [-1, 1]: an edit of 2 reaches everything
    check_in_range("edit_scale", model.edit_scale, 0, 2)
    if model.kl_budget is not None:
        check_in_range("kl_budget", model.kl_budget, 0, low_excluded=True)
    for name in ("residual", "cuda_graph"):
        if not isinstance(getattr(model, name), bool):
            raise ValueError(f"{name} must be True or False, got {getattr(model, name)!r}.")
    check_one_of("adjoint", model.adjoint, ADJOINT_METHODS)
    check_precision(model.precision, model.device)
    _check_combinations(model)


def _check_combinations(model: Any) -> None:
    if model.edit_scale > 0 and model.distill_coef > 0:
        raise ValueError(
            f"edit_scale={model.edit_scale} (QAM-E) and distill_coef={model.distill_coef} (QAM-F) exclude each "
            "other: each is an action head of its own. Leave one of them at 0."
        )
    if model.kl_budget is not None and model.inverse_temperature != 1:
        raise ValueError(
            f"kl_budget={model.kl_budget} (TRQAM) learns the temperature itself, beside inverse_temperature=1, "
            f"got inverse_temperature={model.inverse_temperature}. Pass inverse_temperature=None, also to load(), "
            "or kl_budget=None for a temperature of your own."
        )
    if model.kl_budget is not None and model.adjoint == "bptt":
        raise ValueError(
            f"kl_budget={model.kl_budget} (TRQAM) scales the noise of the matching loss, which adjoint='bptt' does "
            "not have: use adjoint='lean' or 'scalar'."
        )
    if model.value_penalty > 0 and (model.inverse_temperature == 0 or model.adjoint == "bptt"):
        raise ValueError(
            f"value_penalty={model.value_penalty} is taken at the actions of the policy's path, which "
            f"inverse_temperature={model.inverse_temperature} with adjoint={model.adjoint!r} does not have: use "
            "adjoint='lean' or 'scalar' with a positive temperature, or value_penalty=0."
        )
    if model.flow_steps == 1 and model.adjoint == "bptt":
        raise ValueError(
            "With flow_steps=1 adjoint='bptt' never shows the critic to the policy: its only step follows the "
            "behavior flow. Use more flow steps, or adjoint='lean' or 'scalar'."
        )
    method, options = (model.policy_kwargs.get(name) for name in ("ode_method", "ode_options"))
    if model.cuda_graph and (method not in (None, "euler") or options):
        raise ValueError(
            f"cuda_graph=True: ode_method={method!r} reads values back, which cannot be part of a CUDA graph. "
            "Use ode_method='euler' without ode_options, or cuda_graph=False."
        )
