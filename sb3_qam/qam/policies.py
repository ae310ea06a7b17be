"""Policies of QAM: they own every network and make actions from noise."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_qam.common.buffers import n_rows
from sb3_qam.common.checks import check_finite_observation
from sb3_qam.common.chunks import predict_in_chunks
from sb3_qam.networks.actors import ConditionedFlows, EditPolicy, OneStepFlow, VelocityField
from sb3_qam.networks.critics import CriticEnsemble
from sb3_qam.networks.features import FeaturesNetwork
from sb3_qam.networks.flows import Velocity, check_ode_method, integrate_flow
from sb3_qam.networks.layers import TanhGELU
from sb3_qam.qam.arguments import NetArch, split_net_arch
from sb3_qam.qam.heads import EditHead, FlowHead, OneStepHead
from sb3_qam.qam.noise import Draw, SamplingNoise, draw_from_observations
from sb3_qam.utils.checks import check_positive_int

SelfNetwork = TypeVar("SelfNetwork", bound=FeaturesNetwork)

# Optimizers that have all their steps in one kernel
FUSED_OPTIMIZERS = (th.optim.Adam, th.optim.AdamW)
# What acts: the policy flow, the behavior flow in its place, or the behavior flow alone, without head and candidates
ACTORS = ("policy", "behavior", "bc")


def take_samples(samples: th.Tensor, index: th.Tensor) -> th.Tensor:
    """
    :param samples: shape (n_samples, batch, action_dim)
    :param index: Which sample of each observation, shape (batch,)
    :return: shape (batch, action_dim)
    """
    # In this form it can be exported for any number of observations
    return samples.gather(0, index.view(1, -1, 1).expand(1, -1, samples.shape[2]))[0]


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


class FlowPolicy(BasePolicy):
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
        alone trains. The Polyak targets always have their own.
    :param normalize_images: Whether to normalize images or not, dividing by 255.0 (True by default)
    :param optimizer_class: The optimizer to use, ``th.optim.Adam`` by default
    :param optimizer_kwargs: Additional keyword arguments, excluding the learning rate, to pass to the optimizer
    :raises ValueError: if a size is not positive or torchdiffeq does not take the method or its options
    """

    behavior_flow: VelocityField
    behavior_flow_target: VelocityField
    policy_flow: VelocityField
    critic: CriticEnsemble
    critic_target: CriticEnsemble

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: NetArch | None = None,
        activation_fn: Callable[[], nn.Module] = TanhGELU,
        n_critics: int = 2,
        flow_layer_norm: bool = False,
        flow_steps: int = 10,
        ode_method: str = "euler",
        ode_options: dict[str, Any] | None = None,
        acts_as: str = "policy",
        chunk_size: int = 1,
        best_of_n: int = 1,
        edit_scale: float = 0.0,
        distill_coef: float = 0.0,
        residual: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = False,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if features_extractor_class is None:
            is_dict = isinstance(observation_space, spaces.Dict)
            features_extractor_class = CombinedExtractor if is_dict else FlattenExtractor
        sizes = {"n_critics": n_critics, "flow_steps": flow_steps, "chunk_size": chunk_size, "best_of_n": best_of_n}
        for name, size in sizes.items():
            check_positive_int(name, size)
        check_ode_method(ode_method, ode_options)
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            normalize_images=normalize_images,
            squash_output=True,
        )
        self.net_arch: NetArch = [256, 256] if net_arch is None else net_arch
        self.activation_fn = activation_fn
        self.action_dim = chunk_size * get_action_dim(action_space)
        self.flow_steps = flow_steps
        self.ode_method = ode_method
        self.ode_options = ode_options
        self.acts_as = acts_as
        self.chunk_size = chunk_size
        self.best_of_n = best_of_n
        self.edit_scale = edit_scale
        self.distill_coef = distill_coef
        self.residual = residual
        self.share_features_extractor = share_features_extractor

        flow_arch, critic_arch = split_net_arch(self.net_arch)
        net_kwargs = {
            "observation_space": observation_space,
            "action_space": action_space,
            "action_dim": self.action_dim,
            "activation_fn": activation_fn,
            "normalize_images": normalize_images,
        }
        self.actor_kwargs: dict[str, Any] = {
            **net_kwargs,
            "net_arch": flow_arch,
            "layer_norm": flow_layer_norm,
            "trains_features_extractor": not share_features_extractor,
        }
        self.critic_kwargs: dict[str, Any] = {**net_kwargs, "net_arch": critic_arch, "n_critics": n_critics}

        self._build(lr_schedule)

    def _build(self, lr_schedule: Schedule) -> None:
        """
        Create the networks, their targets and the one optimizer.

        :param lr_schedule: Learning rate schedule; ``lr_schedule(1)`` is the initial learning rate
        """
        self.critic = self.make_critic()
        shared_extractor = self.critic.features_extractor if self.share_features_extractor else None
        self.behavior_flow = self.make_actor(VelocityField, shared_extractor)
        self.policy_flow = self.make_actor(VelocityField, shared_extractor)
        if self.residual:
            self._zero_policy_flow()
        self.set_actor(self.acts_as)
        self.head = self.make_head(shared_extractor)

        self.critic_target = self.make_critic()
        self.behavior_flow_target = self.make_actor(VelocityField)
        for target, source in self.target_pairs():
            target.load_state_dict(source.state_dict())
            target.requires_grad_(False)
            # Target networks should always be in eval mode
            target.set_training_mode(False)

        # One step for all networks (the gradients are clipped together); a set would lose the order.
        networks = self.trained_networks()
        parameters = list(dict.fromkeys(parameter for network in networks for parameter in network.parameters()))
        kwargs = self.optimizer_kwargs
        if self.optimizer_class in FUSED_OPTIMIZERS and not kwargs.keys() & {"foreach", "fused", "capturable"}:
            # One pass over parameters and moments instead of eight
            kwargs = {**kwargs, "fused": True}
        self.optimizer = self.optimizer_class(parameters, lr=lr_schedule(1), **kwargs)  # type: ignore[call-arg]

    def target_pairs(self) -> list[tuple[VelocityField | CriticEnsemble, VelocityField | CriticEnsemble]]:
        """:return: Each Polyak target beside the network it follows"""
        return [(self.behavior_flow_target, self.behavior_flow), (self.critic_target, self.critic)]

    def trained_networks(self) -> list[nn.Module]:
        """:return: All that the optimizer trains"""
        return [self.behavior_flow, self.policy_flow, self.critic, self.head]

    def make_actor(
        self, network_class: type[SelfNetwork], features_extractor: BaseFeaturesExtractor | None = None
    ) -> SelfNetwork:
        """
        :param network_class: VelocityField, OneStepFlow or EditPolicy
        :param features_extractor: Extractor to share; by default the network gets its own
        :return: A new network
        """
        return network_class(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)

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

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> CriticEnsemble:
        """
        :param features_extractor: Extractor to share; by default the network gets its own
        :return: A new ensemble of critics
        """
        return CriticEnsemble(**self._update_features_extractor(self.critic_kwargs, features_extractor)).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            dict(
                net_arch=self.net_arch,
                activation_fn=self.activation_fn,
                n_critics=self.critic_kwargs["n_critics"],
                flow_layer_norm=self.actor_kwargs["layer_norm"],
                flow_steps=self.flow_steps,
                ode_method=self.ode_method,
                ode_options=self.ode_options,
                acts_as=self.acts_as,
                chunk_size=self.chunk_size,
                best_of_n=self.best_of_n,
                edit_scale=self.edit_scale,
                distill_coef=self.distill_coef,
                residual=self.residual,
                lr_schedule=self._dummy_schedule,  # dummy lr schedule, not needed for loading policy alone
                features_extractor_class=self.features_extractor_class,
                features_extractor_kwargs=self.features_extractor_kwargs,
                share_features_extractor=self.share_features_extractor,
                optimizer_class=self.optimizer_class,
                optimizer_kwargs=self.optimizer_kwargs,
            )
        )
        return data

    def set_actor(self, acts_as: str) -> None:
        """
        :param acts_as: What acts, one of ACTORS. With ``"bc"`` the loss of the behavior flow trains a shared features
            extractor, which no other loss would
        """
        self.acts_as = acts_as
        self.behavior_flow.trains_features_extractor = acts_as == "bc" or not self.share_features_extractor

    def set_hyperparameter(self, name: str, value: float) -> None:
        """
        :param name: ``flow_steps``, ``best_of_n``, ``edit_scale`` or ``distill_coef``
        :param value: Its new value
        """
        setattr(self, name, value)
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

    @th.no_grad()
    def flow_actions(self, velocity: Velocity, x0: th.Tensor) -> th.Tensor:
        """
        Follow a flow from noise to its end.

        :param velocity: The flow
        :param x0: Standard normal noise, shape (..., batch, action_dim)
        :return: Actions in [-1, 1], same shape
        """
        return integrate_flow(velocity, x0, self.flow_steps, self.ode_method, self.ode_options).clamp(-1, 1)

    def draw_noise(self, batch_size: int, draw: Draw | None = None) -> SamplingNoise:
        """
        :param batch_size: Number of observations
        :param draw: Draws standard normal numbers, by default from PyTorch's generator
        :return: Noise for :meth:`sample_actions`, shape (n_candidates, batch, action_dim)
        """
        acting = self.acting
        draw = draw or partial(th.randn, device=self.device)
        return acting.head.draw_noise(draw, acting.n_candidates, batch_size, self.action_dim)

    def candidate_actions(self, observations: PyTorchObs, noise: SamplingNoise) -> th.Tensor:
        """
        :param observations: A batch of observations
        :param noise: Noise of shape (n_samples, batch, action_dim)
        :return: An action in [-1, 1] of each noise, same shape
        """
        velocity, head, _ = self.acting
        flows = self.flows(observations)
        return head(observations, lambda x0: self.flow_actions(velocity(flows), x0), noise)

    def sample_actions(self, observations: PyTorchObs, noise: SamplingNoise) -> th.Tensor:
        """
        Make actions from noise: the best of the candidates by the mean of the critics, where there are several.
        Acting, evaluation and the critic's target all come here.

        :param observations: A batch of observations
        :param noise: Noise of shape (n_samples, batch, action_dim)
        :return: Actions in [-1, 1], those of a chunk one after the other, shape (batch, action_dim)
        """
        candidates = self.candidate_actions(observations, noise)
        if len(candidates) == 1:
            return candidates[0]
        q_values = self.critic(self.critic.features(observations), candidates).mean(dim=0)
        return take_samples(candidates, q_values.argmax(dim=0))

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self._predict(obs, deterministic=deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        draw = draw_from_observations(observation) if deterministic else None
        return self.sample_actions(observation, self.draw_noise(n_rows(observation), draw))

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Get the policy action from an observation. With chunks, the rest of each environment's chunk is the state:
        give it back, as to a recurrent policy, and the chunk is executed open loop; without it a new one begins.

        :param observation: the input observation
        :param state: what the last call returned
        :param episode_start: whether each environment has just been reset, shape (n_envs,): a new chunk begins
        :param deterministic: Whether the noise that an action is made from is a function of the observation
            (the same observation gives the same action) or freshly drawn
        :return: the model's action and the next state, ``None`` where actions are not chunked
        :raises ValueError: if the state is not one of as many environments, or an observation is not finite
        """
        # SB3 explains the mistake of passing what env.reset() returns
        if isinstance(observation, tuple):
            return super().predict(observation)
        # Before anything moves: a robot would
        check_finite_observation(observation, self.observation_space)
        if self.chunk_size == 1:
            return super().predict(observation, state, episode_start, deterministic)
        return predict_in_chunks(
            lambda rows: super(FlowPolicy, self).predict(rows, deterministic=deterministic)[0],
            observation,
            state,
            episode_start,
            (self.chunk_size, *self.action_space.shape),  # type: ignore[misc]
            self.is_vectorized_observation,
        )

    def set_training_mode(self, mode: bool) -> None:
        """
        Put the policy in either training or evaluation mode; the targets stay in evaluation mode.
        This affects certain modules, such as batch normalization and dropout.

        :param mode: if true, set to training mode, else set to evaluation mode
        """
        # Before every action: going through all modules takes as long as a few flow steps
        if self.training != mode:
            for network in self.trained_networks():
                network.train(mode)
            self.training = mode


MlpPolicy = FlowPolicy


class CnnPolicy(FlowPolicy):
    """:class:`FlowPolicy` for images, with ``NatureCNN`` as the default features extractor."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **kwargs
        )


class MultiInputPolicy(FlowPolicy):
    """
    :class:`FlowPolicy` for Dict observations, with ``CombinedExtractor`` as the default features extractor.

    :raises ValueError: if observations are no Dict, and for what :class:`FlowPolicy` refuses
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor,
        **kwargs: Any,
    ) -> None:
        if not isinstance(observation_space, spaces.Dict):
            raise ValueError(
                f"MultiInputPolicy is for Dict observations, use FlowPolicy or CnnPolicy for {observation_space}."
            )
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **kwargs
        )
