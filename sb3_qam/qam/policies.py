"""Policies of QAM: they own every network and make actions from noise."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_qam.common.noise import Draw, SamplingNoise
from sb3_qam.common.policies import BaseFlowPolicy, DictPolicy, ImagePolicy, TargetPair
from sb3_qam.networks.actors import ConditionedFlows, EditPolicy, OneStepFlow, VelocityField
from sb3_qam.networks.flows import Velocity
from sb3_qam.qam.heads import EditHead, FlowHead, OneStepHead

# What acts: the policy flow, the behavior flow in its place, or the behavior flow alone, without head and candidates
ACTORS = ("policy", "behavior", "bc")


class Acting(NamedTuple):
    """
    How actions are made of noise.

    :param velocity: The flow that acts
    :param head: The action head
    :param n_candidates: Of how many actions the best is taken
    """

    velocity: Callable[[ConditionedFlows], Velocity]
    head: FlowHead
    n_candidates: int


class FlowPolicy(BaseFlowPolicy):
    """
    Policy class of QAM: a behavior flow, a policy flow, an ensemble of critics, and the action head of a variant.

    Vectors are flattened and Dicts of vectors combined, whichever the observation space is.

    :param observation_space: Observation space
    :param action_space: Action space, a bounded Box
    :param lr_schedule: Learning rate schedule (could be constant)
    :param net_arch: Sizes of the hidden layers, ``[256, 256]`` by default, or ``dict(pi=[...], qf=[...])`` for
        velocity fields and critics
    :param activation_fn: Activation of the hidden layers
    :param n_critics: Number of critics
    :param flow_layer_norm: Whether the velocity fields normalize after each activation; the critics always do
    :param flow_steps: Number of steps from noise to action of a fixed-step ``ode_method``
    :param ode_method: Any method of ``torchdiffeq.odeint``; ``"euler"`` is the paper's
    :param ode_options: ``rtol`` and ``atol`` of adaptive methods (1e-5 by default) and options of the solver
    :param acts_as: What acts, one of ACTORS: the ``"policy"`` flow; the ``"behavior"`` flow in its place; or
        ``"bc"``, the behavior flow alone. This argument and the next five are set by QAM from its own
    :param chunk_size: Number of actions in a chunk; the flows and the critics take a chunk for one action
    :param best_of_n: Draw that many actions and take the one that the critics value most
    :param edit_scale: Scale of the edits of QAM-E, 0 for none
    :param distill_coef: Distillation coefficient of the one-step policy of QAM-F, 0 for none
    :param residual: Whether the policy flow is what is added to the behavior flow's target
    :param features_extractor_class: Features extractor to use. By default ``CombinedExtractor`` for Dict
        observations and ``FlattenExtractor`` for all others
    :param features_extractor_kwargs: Keyword arguments to pass to the features extractor
    :param share_features_extractor: Whether the flows and the critics use one extractor, which the critic's loss
        trains, and the behavior's while that is trained alone. The Polyak targets always have their own.
    :param normalize_images: Whether to normalize images or not, dividing by 255.0 (True by default)
    :param optimizer_class: The optimizer to use, ``th.optim.Adam`` by default
    :param optimizer_kwargs: Additional keyword arguments, excluding the learning rate, to pass to the optimizer
    :raises ValueError: if a size is not positive or torchdiffeq does not take the method or its options
    """

    behavior_flow_target: VelocityField
    policy_flow: VelocityField

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        acts_as: str = "policy",
        edit_scale: float = 0.0,
        distill_coef: float = 0.0,
        residual: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        self.acts_as = acts_as
        self.edit_scale = edit_scale
        self.distill_coef = distill_coef
        self.residual = residual
        self._build(lr_schedule)

    def _build_actors(self, shared_extractor: BaseFeaturesExtractor | None) -> None:
        super()._build_actors(shared_extractor)
        self.policy_flow = self.make_actor(VelocityField, shared_extractor)
        if self.residual:
            self._zero_policy_flow()
        self.head = self.make_head(shared_extractor)
        self.behavior_flow_target = self.make_actor(VelocityField)

    @property
    def actor(self) -> VelocityField:
        """The policy flow, as ``policy.actor`` of SB3's off-policy policies."""
        return self.policy_flow

    def target_pairs(self) -> list[TargetPair]:
        return [(self.behavior_flow_target, self.behavior_flow), *super().target_pairs()]

    def trained_networks(self) -> list[nn.Module]:
        # In the order of optimizers that are saved
        return [self.behavior_flow, self.policy_flow, self.critic, self.head]

    def make_head(self, features_extractor: BaseFeaturesExtractor | None = None) -> FlowHead:
        """
        :param features_extractor: Extractor to share; by default its network gets its own
        :return: What makes actions of noise and the flow
        """
        head = FlowHead()
        if self.edit_scale > 0:
            head = EditHead(self.make_actor(EditPolicy, features_extractor), self.action_dim, self.edit_scale)
        elif self.distill_coef > 0:
            head = OneStepHead(self.make_actor(OneStepFlow, features_extractor), self.distill_coef)
        return head.to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        names = ("acts_as", "edit_scale", "distill_coef", "residual")
        return {**super()._get_constructor_parameters(), **{name: getattr(self, name) for name in names}}

    def set_hyperparameter(self, name: str, value: Any) -> None:
        super().set_hyperparameter(name, value)
        if hasattr(self.head, name):
            setattr(self.head, name, value)

    def start_from_behavior(self) -> None:
        """Make the policy flow what the behavior flow is, and forget how it was optimized."""
        # A shared features extractor is that of the other networks, too
        shared = {*self.behavior_flow.parameters(), *self.critic.parameters()}
        for parameter in set(self.policy_flow.parameters()) - shared:
            self.optimizer.state.pop(parameter, None)
        if self.residual:
            self.behavior_flow_target.load_state_dict(self.behavior_flow.state_dict())
            self._zero_policy_flow()
        else:
            self.policy_flow.load_state_dict(self.behavior_flow.state_dict())

    @th.no_grad()
    def _zero_policy_flow(self) -> None:
        for parameter in self.policy_flow.mlp[-1].parameters():
            parameter.zero_()

    def flows(self, observations: PyTorchObs) -> ConditionedFlows:
        """
        :param observations: A batch of observations
        :return: The velocities of all flows for these, as functions of x, shape (..., batch, action_dim), and of t
        """
        return ConditionedFlows(
            self.behavior_flow, self.behavior_flow_target, self.policy_flow, self.residual, observations
        )

    @property
    def acting(self) -> Acting:
        """The flow that acts, its head, and of how many candidates the best is taken."""
        if self.acts_as == "bc":
            return Acting(lambda flows: flows.behavior, FlowHead(), 1)
        if self.acts_as == "behavior":
            return Acting(lambda flows: flows.behavior, self.head, self.best_of_n)
        return Acting(lambda flows: flows.acting_policy, self.head, self.best_of_n)

    def draw_noise(self, batch_size: int, draw: Draw | None = None) -> SamplingNoise:
        acting = self.acting
        draw = draw or partial(th.randn, device=self.device)
        return acting.head.draw_noise(draw, acting.n_candidates, batch_size, self.action_dim)

    def candidate_actions(self, observations: PyTorchObs, noise: SamplingNoise) -> th.Tensor:
        velocity, head, _ = self.acting
        flows = self.flows(observations)
        return head(observations, lambda x0: self.flow_actions(velocity(flows), x0), noise)


MlpPolicy = FlowPolicy


class CnnPolicy(ImagePolicy, FlowPolicy):
    """:class:`FlowPolicy` for images, with ``NatureCNN`` as the default features extractor."""


class MultiInputPolicy(DictPolicy, FlowPolicy):
    """
    :class:`FlowPolicy` for Dict observations, with ``CombinedExtractor`` as the default features extractor.

    :raises ValueError: if observations are no Dict, and for what :class:`FlowPolicy` refuses
    """
