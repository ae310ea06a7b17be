"""What callbacks record of a QAM model: flows and critics at states of the data."""

from typing import Any

import torch as th

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
    q_values = model._policy_values(batch.observations, noise)
    return {
        **{f"adjoint_norm_{k}": norm for k, norm in enumerate(adjoints.norm(dim=-1).mean(dim=1))},
        "ensemble_disagreement": q_values.std(dim=0, correction=0).mean(),
        "path_kl": path.kl() / model.chunk_size,
    }
