"""Compare with recorded numbers of the published implementation: ``python -m tests.reference FILE.npz...``

Each file is one tiny problem: parameters, batches, every random draw, and what came of them. The model is built from
the file's own ``meta``, is given its parameters, and runs its own ``train()``; only the batches and the noise are
handed in. Printed is the largest error of each quantity relative to the largest magnitude in its array. The exit
status is 0 if all are at most 5e-5. With ``--plain``, networks are evaluated module by module.
"""

import argparse
import json
import sys
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from torch import nn

from sb3_qam import IFQL, QAM, ReBRAC
from sb3_qam.common.buffers import TransitionBatch
from sb3_qam.common.noise import SamplingNoise
from sb3_qam.common.optimization import JointOptimization
from sb3_qam.common.phases import SpacesOnlyEnv
from sb3_qam.ifql import ifql
from sb3_qam.networks import cpu_kernels
from sb3_qam.qam.adjoint_matching import AdjointMethod, PolicyPath
from sb3_qam.qam.noise import PathNoise, UpdateNoise

TOLERANCE = 5e-5

# Recorded name -> attribute of the policy. The policy flow's own target is recorded, but nothing uses it.
MODULES = {
    "modules_actor_slow": "behavior_flow",
    "modules_target_actor_slow": "behavior_flow_target",
    "modules_actor_fast": "policy_flow",
    "modules_critic": "critic",
    "modules_target_critic": "critic_target",
    "modules_one_step_actor": "head.one_step_flow",
    "modules_edit_actor": "head.edit_policy",
    "modules_edit_alpha": "head.entropy_coef",
    "modules_actor_bc_flow": "behavior_flow",
    "modules_actor_onestep_flow": "head.one_step_flow",
    "modules_actor_flow": "behavior_flow",
    "modules_value": "value",
    "modules_actor": "actor",
    "modules_target_actor": "actor_target",
}
UNUSED_MODULES = {"modules_target_actor_fast"}
# Recorded name -> what train() reports it as, where the two differ
REPORTED = {
    "flow_loss": "bc_loss",
    "adj_loss": "adjoint_loss",
    "bam_loss": "adjoint_loss",
    "bc_flow_loss": "bc_loss",
    "distill_loss": "fql_distill_loss",
    "total_loss": "policy_loss",
}
# Recorded name -> attribute of the trust region, both after the update
DUAL_VARIABLES = {"lam": "kl_lambda", "kl_ema": "kl_average"}
# Diagnostics that this package defines otherwise or leaves out; fast_loss repeats adj_loss, and critic_loss_total has
# the gap_reg_term with its coefficient
NOT_REPORTED = {"fast_loss", "adj_max", "adj_mean", "adj_std", "q_max", "q_min", "gap_reg_term"}
NOT_REPORTED |= {"v_max", "v_min", "action_std"}
# Sums of losses that train() reports one by one
SUMS = {
    "critic_loss_total": ("critic_loss", "value_penalty"),
    "fql_actor_loss": ("bc_loss", "fql_loss"),
    "policy_loss": ("actor_loss", "bc_penalty"),
}
# Recorded name -> what train() reports it as, where algorithms have other things of that name
OF_ALGORITHM = {
    # The cost of leaving the behavior
    ("bam", "bc_loss"): "control_cost",
    ("fql", "actor_loss"): "fql_actor_loss",
    ("ifql", "actor_loss"): "bc_loss",
    ("rebrac", "mse"): "bc_loss",
    ("rebrac", "bc_loss"): "bc_penalty",
}

# Hyper-parameter in the file -> argument
ARGUMENTS = {
    "discount": "gamma",
    "inv_temp": "inverse_temperature",
    "rho": "pessimism",
    "tau": "tau",
    "lr": "learning_rate",
    "flow_steps": "flow_steps",
    "batch_size": "batch_size",
    "kl_budget": "kl_budget",
    "kappa": "expectile",
    "num_samples": "best_of_n",
    "alpha_actor": "bc_coef",
    "actor_freq": "target_update_interval",
    "actor_noise": "target_policy_noise",
    "actor_noise_clip": "target_noise_clip",
}
# Algorithm in the file -> what makes it of QAM, beside the hyper-parameters
ALGORITHMS: dict[str, dict[str, Any]] = {
    "sqam": {"adjoint": "scalar"},
    "bam": {"adjoint": "bptt"},
    "fql": {"inverse_temperature": 0.0, "max_grad_norm": float("inf")},
}
# The same, where the value given here means that the variant is off
VARIANT_ARGUMENTS = {
    "best_of_n": ("best_of_n", 1),
    "edit_scale": ("edit_scale", 0.0),
    "fql_alpha": ("distill_coef", 0.0),
    "alpha": ("distill_coef", 0.0),
    "gap_reg_coef": ("value_penalty", 0.0),
    "residual": ("residual", False),
}
# What the design fixes
CONSTANTS = {
    "clip_adj": True,
    "clip_grad": True,
    "target_actor": True,
    "use_target_grad": True,
    "value_layer_norm": True,
    "edit_target_entropy_multiplier": 0.5,
    "eta_lambda": 0.01,
    "kl_clip_coef": 2.0,
    "kl_ema_coef": 0.1,
    "lam_scale": 3.0,
    "lambda_max": 100.0,
    "lambda_min": 0.01,
    "actor_fc_scale": 0.01,
}


class RecordedObjective:
    """An objective that keeps its paths and adjoints."""

    def __init__(self, objective: AdjointMethod) -> None:
        self._objective = objective
        self.paths: list[PolicyPath] = []
        self.all_adjoints: list[th.Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def path(self, *args: Any) -> PolicyPath:
        self.paths.append(self._objective.path(*args))
        return self.paths[-1]

    def adjoints(self, *args: Any) -> th.Tensor:
        self.all_adjoints.append(self._objective.adjoints(*args))
        return self.all_adjoints[-1]


class Recorded(JointOptimization):
    """An algorithm on recorded batches and noise, which keeps what its updates make of them."""

    def replay(self, batches: list[TransitionBatch], noises: list[Any]) -> None:
        self._recorded = iter(zip(batches, noises, strict=True))
        self.gradients: list[dict[str, th.Tensor]] = []
        self.reported: list[dict[str, th.Tensor]] = []
        self.dual_variables: list[dict[str, th.Tensor]] = []
        self.set_logger(Logger(folder=None, output_formats=[]))
        self.train(gradient_steps=len(batches), batch_size=self.batch_size)

    def _sample_batch(self, batch_size: int) -> TransitionBatch:
        batch, self._noise = next(self._recorded)
        return batch

    def _sample_noise(self, batch_size: int) -> Any:
        return self._noise

    def _update(self, batch: TransitionBatch, noise: Any) -> None:
        super()._update(batch, noise)
        temperature = getattr(self, "temperature", None)
        self.dual_variables.append(
            {
                name: getattr(temperature, ours).clone()
                for name, ours in DUAL_VARIABLES.items()
                if hasattr(temperature, ours)
            }
        )

    def _clip_gradients(self) -> th.Tensor:
        self.gradients.append(
            {
                name: th.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
                for name, parameter in self.policy.named_parameters()
            }
        )
        return super()._clip_gradients()

    def _optimize(self, losses: dict[str, th.Tensor], reported: dict[str, th.Tensor], targets: Any) -> None:
        self.reported.append({name: value.detach() for name, value in {**losses, **reported}.items()})
        super()._optimize(losses, reported, targets)


class RecordedQAM(Recorded, QAM):
    """QAM, whose paths and adjoints are kept, too."""

    def replay(self, batches: list[TransitionBatch], noises: list[Any]) -> None:
        self.adjoint_method = self.recorded_objective = RecordedObjective(self.adjoint_method)  # type: ignore[assignment]
        super().replay(batches, noises)


class RecordedIFQL(Recorded, IFQL):
    pass


class RecordedReBRAC(Recorded, ReBRAC):
    pass


# Algorithm in the file -> class, where it is not QAM
CLASSES: dict[str, type[Recorded]] = {"ifql": RecordedIFQL, "rebrac": RecordedReBRAC}


def build_model(meta: dict[str, Any]) -> Recorded:
    """The model that ``meta`` describes, all sizes and hyper-parameters included."""
    config = meta["config"]
    for name, expected in CONSTANTS.items():
        if name in config and config[name] != expected:
            raise ValueError(f"{name}={config[name]!r} is recorded, here is {expected!r} and no argument for it")
    algorithm = CLASSES.get(config["agent_name"], RecordedQAM)
    arguments = {argument: config[name] for name, argument in ARGUMENTS.items() if name in config}
    arguments |= ALGORITHMS.get(config["agent_name"], {})
    for name, (argument, off) in VARIANT_ARGUMENTS.items():
        if config.get(name, off) != off:
            arguments[argument] = config[name]
    if meta["horizon"] > 1:
        arguments["chunk_size" if meta["action_chunking"] else "n_steps"] = meta["horizon"]
    policy_kwargs = {
        "net_arch": {"pi": list(config["actor_hidden_dims"]), "qf": list(config["value_hidden_dims"])},
        "n_critics": config["num_qs"],
        "flow_layer_norm": config["actor_layer_norm"],
    }
    if algorithm is RecordedReBRAC:
        # It has no flow
        del arguments["flow_steps"], policy_kwargs["flow_layer_norm"]
    env = SpacesOnlyEnv(spaces.Box(-np.inf, np.inf, (meta["obs_dim"],)), spaces.Box(-1.0, 1.0, (meta["action_dim"],)))
    return algorithm("MlpPolicy", env, **arguments, buffer_size=1000, device="cpu", policy_kwargs=policy_kwargs)


def parameter_for(policy: nn.Module, recorded: str) -> tuple[str, nn.Parameter]:
    """Our name and our parameter for a recorded name such as ``modules_critic/value_net/Dense_0/kernel``."""
    module_name, *layers_between, leaf = recorded.split("/")
    layer_name = layers_between[-1] if layers_between else None
    name = MODULES[module_name]
    if layer_name is None:  # a lone scalar: modules_edit_alpha/log_value
        name = f"{name}.{leaf}"
    else:
        # ReBRAC's output layer, behind those that are counted
        kind, _, index = "Dense_-1".rpartition("_") if layer_name == "mean_net" else layer_name.rpartition("_")
        if kind in ("Dense", "LayerNorm"):
            layers = {"Dense": [], "LayerNorm": []}  # type: dict[str, list[str]]
            for position, layer in policy.get_submodule(f"{name}.mlp").named_children():
                if hasattr(layer, "weight"):
                    layers["LayerNorm" if "LayerNorm" in type(layer).__name__ else "Dense"].append(position)
            name = f"{name}.mlp.{layers[kind][int(index)]}"
        else:
            name = f"{name}.{ {'OutputDenseMean': 'mean', 'OutputDenseLogStd': 'log_std'}[layer_name] }"
        name = f"{name}.{'bias' if leaf == 'bias' else 'weight'}"
    return name, policy.get_parameter(name)


def as_recorded(ours: th.Tensor, recorded: np.ndarray, leaf: str) -> np.ndarray:
    """
    Our array in the recorded layout: a kernel is (in, out) there, PyTorch's linear layers have (out, in). A value
    function is an ensemble of one here.
    """
    array = ours.detach().numpy()
    if array.ndim > recorded.ndim:
        return array[0]
    return array.T if leaf == "kernel" and recorded.ndim == 2 else array


def section(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


def used_parameters(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in section(arrays, prefix).items() if name.split("/")[0] not in UNUSED_MODULES}


def recorded_batch(batch: dict[str, np.ndarray], meta: dict[str, Any]) -> TransitionBatch:
    """Index -1 along the h steps holds the h-step return, s', m and whether the sample is valid."""
    actions = batch["actions"].reshape(len(batch["actions"]), -1) if meta["action_chunking"] else batch["actions"][:, 0]
    tensors = [
        batch["observations"],
        actions,
        batch["next_observations"][:, -1],
        batch["rewards"][:, -1],
        np.full_like(batch["rewards"][:, -1], meta["config"]["discount"] ** meta["horizon"]),
        batch["masks"][:, -1],
        batch["valid"][:, -1],
    ]
    return TransitionBatch(*map(th.from_numpy, tensors))


def recorded_noise(noise: dict[str, np.ndarray], algorithm: str) -> Any:
    """The samples of an action count along the second axis in the file, along the first one here."""
    tensors = {name: th.from_numpy(array) for name, array in noise.items()}
    if algorithm == "rebrac":
        return tensors["target_noise"]
    if algorithm == "ifql":
        return ifql.UpdateNoise(**tensors)
    next_noise = [tensors.pop(name).transpose(0, 1) for name in ("next_action_x0", "next_edit_eps") if name in tensors]
    head_noise = [tensors.pop(name) for name in ("fql_x0", "edit_x0", "edit_eps") if name in tensors]
    path_noise = [tensors.pop(name) for name in ("sde_x0", "sde_noise", "bridge_noise") if name in tensors]
    return UpdateNoise(
        next_action=SamplingNoise(*next_noise),
        path=PathNoise(*path_noise) if path_noise else None,
        head=SamplingNoise(*head_noise) if head_noise else None,
        **tensors,
    )


def relative_error(ours: np.ndarray, recorded: np.ndarray) -> float:
    """The largest difference relative to the largest recorded magnitude; NaN and a wrong shape are infinitely wrong."""
    if ours.shape != recorded.shape or not np.isfinite(ours).all():
        return np.inf
    difference = np.abs(ours.astype(np.float64) - recorded).max()
    scale = np.abs(recorded).max()
    if difference == 0:
        return 0.0
    return difference / scale if scale > 0 else np.inf


def compare(path: Path | str) -> dict[str, float]:
    """
    Run the recorded updates.

    :param path: A recorded problem
    :return: The largest relative error of each quantity, over all updates and arrays
    """
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    meta = json.loads(bytes(arrays.pop("meta")))
    n_updates, algorithm = meta["updates"], meta["algorithm"]
    model = build_model(meta)
    policy: Any = model.policy

    with th.no_grad():
        for name, recorded in used_parameters(arrays, "params0/").items():
            _, parameter = parameter_for(policy, name)
            leaf = name.rsplit("/", 1)[-1]
            is_linear = leaf == "kernel" and parameter.dim() == 2
            parameter.copy_(th.from_numpy(recorded.T if is_linear else recorded))

    updates = [section(arrays, f"update{update}/") for update in range(n_updates)]
    model.replay(
        [recorded_batch(section(update, "batch/"), meta) for update in updates],
        [recorded_noise(section(update, "noise/"), algorithm) for update in updates],
    )

    errors: dict[str, float] = defaultdict(float)

    def note(quantity: str, ours: np.ndarray, recorded: np.ndarray) -> None:
        errors[quantity] = max(errors[quantity], relative_error(ours, recorded))

    for number, update in enumerate(updates):
        if "xs" in update:
            assert isinstance(model, RecordedQAM)
            note("xs", model.recorded_objective.paths[number].states.numpy(), update["xs"])
            note("adjoints", model.recorded_objective.all_adjoints[number].numpy(), update["adjoints"])
        reported = {name: value.numpy() for name, value in model.reported[number].items()}
        zero = np.zeros((), np.float32)
        reported |= {name: np.sum([reported.get(part, zero) for part in parts], axis=0) for name, parts in SUMS.items()}
        scalars = {name.rsplit("/", 1)[-1]: value for name, value in section(update, "info/").items()}
        for name, value in scalars.items():
            # IFQL's values are those of the target
            if name not in NOT_REPORTED and (algorithm, name) != ("ifql", "q_mean"):
                ours = OF_ALGORITHM.get((algorithm, name), REPORTED.get(name, name))
                note(ours, reported[ours], value)
        for name, dual_variable in model.dual_variables[number].items():
            if name in update:
                note(f"{DUAL_VARIABLES[name]} after the update", dual_variable.numpy(), update[name])
        for name, recorded in used_parameters(update, "grads/").items():
            our_name, _ = parameter_for(policy, name)
            # Those of the critic's loss alone
            if algorithm == "rebrac" and our_name.startswith("actor"):
                continue
            leaf = name.rsplit("/", 1)[-1]
            note("gradients", as_recorded(model.gradients[number][our_name], recorded, leaf), recorded)
    for name, recorded in used_parameters(arrays, f"params{n_updates}/").items():
        _, parameter = parameter_for(policy, name)
        note(
            f"parameters after {n_updates} updates", as_recorded(parameter, recorded, name.rsplit("/", 1)[-1]), recorded
        )

    sample = {name: th.from_numpy(array) for name, array in section(arrays, "sample/").items()}
    if sample:
        with th.no_grad():
            flows = policy.flows(sample["obs"])
            for name, velocity in {"slow": flows.behavior, "fast": flows.acting_policy}.items():
                actions = policy.flow_actions(velocity, sample["x0"])
                note(f"sampled actions ({name} flow)", actions.numpy(), sample[f"flow_actions_{name}"].numpy())
    return dict(errors)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reference", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz")
    parser.add_argument("--plain", action="store_true", help="evaluate networks module by module")
    arguments = parser.parse_args(argv)
    agrees = True
    for path in arguments.files:
        print(path)
        try:
            with cpu_kernels.disabled() if arguments.plain else nullcontext():
                errors = compare(path)
        except Exception as error:
            print(f"  cannot be run: {type(error).__name__}: {error}")
            agrees = False
            continue
        for quantity, largest in errors.items():
            print(f"  {quantity:32} {largest:9.2e}  {'ok' if largest <= TOLERANCE else f'> {TOLERANCE:g}'}")
        agrees &= max(errors.values()) <= TOLERANCE
    print("agrees" if agrees else "DISAGREES")
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
