"""What callbacks record of a QAM model: flows and critics at states of the data, and losses on held-out data."""

from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_qam.common.buffers import TransitionBatch, n_rows
from sb3_qam.common.noise import SamplingNoise
from sb3_qam.networks.flows import flow_matching_loss
from sb3_qam.qam.adjoint_matching import LeanAdjoint


@th.no_grad()
def flow_diagnostics(model: Any, n_states: int) -> dict[str, th.Tensor]:
    """
    :param model: A QAM model
    :param n_states: Number of states to draw from the training data
    :return: Norms of the adjoint at each flow step, disagreement of the critics and divergence of the policy; nothing
        while the policy flow is not trained
    """
    if not model.trains_policy_flow:
        return {}
    batch, noise = model.draw_batch(n_states), model._sample_noise(n_states)
    flows = model.policy.flows(batch.observations)
    critics = model._critics(batch, model.critic.features(batch.observations))
    # Back-propagation has no adjoint: shown is the one that matching would have
    objective = LeanAdjoint() if model.adjoint == "bptt" else model.adjoint_method
    path = objective.path(flows, noise.path)
    adjoints = objective.adjoints(flows, path, objective.terminal(critics, path, model.inverse_temperature))
    q_values = values_of_policy(model, batch.observations, noise.next_action)
    return {
        **{f"adjoint_norm_{k}": norm for k, norm in enumerate(adjoints.norm(dim=-1).mean(dim=1))},
        "ensemble_disagreement": q_values.std(dim=0, correction=0).mean(),
        "path_kl": path.kl() / model.chunk_size,
    }


@th.no_grad()
def evaluate_batch(model: Any, batch: TransitionBatch) -> dict[str, th.Tensor]:
    """
    :param model: A QAM model
    :param batch: Transitions, none of them invalid
    :return: Losses and values, each a mean over the batch; of the behavior alone while it alone is trained
    """
    noise = model._sample_noise(n_rows(batch.observations))
    velocity = model.policy.flows(batch.observations).behavior
    metrics = {"bc_loss": flow_matching_loss(velocity, batch.actions, noise.bc_x0, noise.bc_t, batch.valid)}
    if model._objective == "full":
        q_values = model.critic(model.critic.features(batch.observations), batch.actions)
        metrics["td_error"] = ((q_values - model.td_target(batch, noise)) ** 2).mean()
        metrics["data_value"] = q_values.mean()
        metrics["policy_value"] = values_of_policy(model, batch.observations, noise.next_action).mean()
    return metrics


def values_of_policy(model: Any, observations: PyTorchObs, noise: SamplingNoise) -> th.Tensor:
    """
    :param model: A QAM model
    :param observations: A batch of observations
    :param noise: What the policy's actions are made from
    :return: Q_i(s, a) of the policy's actions, shape (n_critics, batch)
    """
    actions = model.policy.sample_actions(observations, noise)
    return model.critic(model.critic.features(observations), actions)
