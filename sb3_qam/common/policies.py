"""What the policies of all algorithms share: critics, targets, one optimizer, chunks; and what those with flows do."""

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import torch as th
from gymnasium import spaces
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
from sb3_qam.common.checks import check_structure
from sb3_qam.common.chunks import ChunkedPolicy
from sb3_qam.common.noise import Draw, SamplingNoise, draw_from_observations
from sb3_qam.networks.actors import VelocityField
from sb3_qam.networks.critics import CriticEnsemble
from sb3_qam.networks.features import FeaturesNetwork, RenamedKeys, module_names
from sb3_qam.networks.flows import Velocity, check_ode_method, integrate_flow
from sb3_qam.networks.layers import TanhGELU
from sb3_qam.utils.checks import check_positive_int

Value = TypeVar("Value")
SelfNetwork = TypeVar("SelfNetwork", bound=FeaturesNetwork)

NetArch = list[int] | dict[str, list[int]]
# A Polyak target beside the network it follows
TargetPair = tuple[FeaturesNetwork, FeaturesNetwork]
# Optimizers that have all their steps in one kernel
FUSED_OPTIMIZERS = (th.optim.Adam, th.optim.AdamW)


class PolicyArgument(Generic[Value]):
    """
    An argument of the algorithm that its policy acts by. The algorithm owns its value, and is saved with it; setting it
    reaches the policy. A value that is out of range, or for other networks, is a ``ValueError``, and changes nothing.

    :param policy_name: The argument of the policy that follows from it, by default the one of the same name
    """

    def __init__(self, policy_name: str | None = None) -> None:
        self.policy_name = policy_name

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, model: Any, owner: type | None = None) -> Value:
        if model is None:
            return self  # type: ignore[return-value]
        try:
            return model.__dict__[self.name]
        except KeyError:
            raise AttributeError(self.name) from None

    def __set__(self, model: Any, value: Value) -> None:
        if getattr(model, "policy", None) is None:
            model.__dict__[self.name] = value
            return
        before = model.__dict__[self.name]
        model.__dict__[self.name] = value
        try:
            model._check_hyperparameters()
            check_structure(model, model._network_structure())
        except ValueError:
            model.__dict__[self.name] = before
            raise
        name = self.policy_name or self.name
        model.policy.set_hyperparameter(name, model._acting_kwargs()[name])


def split_net_arch(net_arch: NetArch) -> tuple[list[int], list[int]]:
    """
    :param net_arch: Sizes of the hidden layers, either one list for all networks or ``dict(pi=[...], qf=[...])``
    :return: The sizes for the actors and for the critics
    :raises ValueError: if the dict lacks a key or has another one, or a size is not a positive integer
    """
    if isinstance(net_arch, dict):
        if set(net_arch) != {"pi", "qf"}:
            raise ValueError(
                f"net_arch has the keys {sorted(net_arch)}, expected 'pi' (actors) and 'qf' (critics): "
                "dict(pi=[256, 256], qf=[256, 256]), or one list for both."
            )
        flow_arch, critic_arch = net_arch["pi"], net_arch["qf"]
    else:
        flow_arch = critic_arch = net_arch
    for sizes in (flow_arch, critic_arch):
        if not isinstance(sizes, (list, tuple)):
            raise ValueError(f"net_arch must be a list of sizes such as [256, 256], or a dict of two, got {sizes!r}.")
    for width in [*flow_arch, *critic_arch]:
        check_positive_int("net_arch", width)
    return flow_arch, critic_arch


class OfflineToOnlinePolicy(ChunkedPolicy):
    """
    Base of the policies: an ensemble of critics with its Polyak target, one optimizer for all networks, and actions in
    chunks. A subclass makes its other networks in :meth:`_build_actors`, adds them to :meth:`trained_networks` and
    :meth:`target_pairs`, and acts in ``_predict()``; its constructor ends with :meth:`_build`.

    :param observation_space: Observation space
    :param action_space: Action space, a bounded Box
    :param lr_schedule: Learning rate schedule (could be constant)
    :param net_arch: Sizes of the hidden layers, ``[256, 256]`` by default, or ``dict(pi=[...], qf=[...])`` for actors
        and critics
    :param activation_fn: Activation of the hidden layers
    :param n_critics: Number of critics
    :param chunk_size: Number of actions in a chunk; actors and critics take a chunk for one action
    :param features_extractor_class: Features extractor to use. By default ``CombinedExtractor`` for Dict
        observations and ``FlattenExtractor`` for all others
    :param features_extractor_kwargs: Keyword arguments to pass to the features extractor
    :param share_features_extractor: Whether all networks use one extractor, which the critic's loss trains, and
        the behavior's while that is trained alone. The
        Polyak targets always have their own.
    :param normalize_images: Whether to normalize images or not, dividing by 255.0 (True by default)
    :param optimizer_class: The optimizer to use, ``th.optim.Adam`` by default
    :param optimizer_kwargs: Additional keyword arguments, excluding the learning rate, to pass to the optimizer
    :param layer_norm: Whether the actors normalize after each activation; the critics always do
    :raises ValueError: if a size is not positive
    """

    critic: CriticEnsemble
    critic_target: CriticEnsemble

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        net_arch: NetArch | None = None,
        activation_fn: Callable[[], nn.Module] = TanhGELU,
        n_critics: int = 2,
        chunk_size: int = 1,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = False,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        layer_norm: bool = False,
    ) -> None:
        is_dict = isinstance(observation_space, spaces.Dict)
        if is_dict:
            # Extractors concatenate in the order of the keys, which equal spaces may have in another one
            observation_space = spaces.Dict(dict(sorted(observation_space.items())))  # type: ignore[attr-defined]
        if features_extractor_class is None:
            features_extractor_class = CombinedExtractor if is_dict else FlattenExtractor
        check_positive_int("n_critics", n_critics)
        check_positive_int("chunk_size", chunk_size)
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
        self.chunk_size = chunk_size
        self.share_features_extractor = share_features_extractor

        actor_arch, critic_arch = split_net_arch(self.net_arch)
        net_kwargs = {
            "observation_space": observation_space,
            "action_space": action_space,
            "action_dim": self.action_dim,
            "activation_fn": activation_fn,
            "normalize_images": normalize_images,
        }
        self.actor_kwargs: dict[str, Any] = {
            **net_kwargs,
            "net_arch": actor_arch,
            "layer_norm": layer_norm,
            "trains_features_extractor": not share_features_extractor,
        }
        self.critic_kwargs: dict[str, Any] = {**net_kwargs, "net_arch": critic_arch, "n_critics": n_critics}

    def _build(self, lr_schedule: Schedule) -> None:
        """
        Create the networks, their targets and the one optimizer.

        :param lr_schedule: Learning rate schedule; ``lr_schedule(1)`` is the initial learning rate
        """
        self.critic = self.make_critic()
        self._build_actors(self.critic.features_extractor if self.share_features_extractor else None)
        self.critic_target = self.make_critic()
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

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """Helper method to create a features extractor."""
        space, extractor_class = self.observation_space, self.features_extractor_class
        if not (isinstance(space, spaces.Dict) and issubclass(extractor_class, CombinedExtractor)):
            return super().make_features_extractor()
        if all(key == name for key, name in module_names(space).items()):
            return super().make_features_extractor()
        return RenamedKeys(space, extractor_class, **self.features_extractor_kwargs)

    def _build_actors(self, shared_extractor: BaseFeaturesExtractor | None) -> None:
        """
        Create all networks but the critics, and the targets of those that have one.

        :param shared_extractor: Features extractor to share, if it is shared
        """
        raise NotImplementedError

    def target_pairs(self) -> list[TargetPair]:
        """:return: Each Polyak target beside the network it follows"""
        return [(self.critic_target, self.critic)]

    def trained_networks(self) -> list[nn.Module]:
        """:return: All that the optimizer trains"""
        return [self.critic]

    def make_actor(
        self, network_class: type[SelfNetwork], features_extractor: BaseFeaturesExtractor | None = None
    ) -> SelfNetwork:
        """
        :param network_class: A class of ``sb3_qam/networks/actors.py``
        :param features_extractor: Extractor to share; by default the network gets its own
        :return: A new network
        """
        return network_class(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None, **others: Any) -> CriticEnsemble:
        """
        :param features_extractor: Extractor to share; by default the network gets its own
        :param others: Arguments in place of the policy's own
        :return: A new ensemble of critics
        """
        kwargs = self._update_features_extractor({**self.critic_kwargs, **others}, features_extractor)
        return CriticEnsemble(**kwargs).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            dict(
                net_arch=self.net_arch,
                activation_fn=self.activation_fn,
                n_critics=self.critic_kwargs["n_critics"],
                chunk_size=self.chunk_size,
                layer_norm=self.actor_kwargs["layer_norm"],
                lr_schedule=self._dummy_schedule,  # dummy lr schedule, not needed for loading policy alone
                features_extractor_class=self.features_extractor_class,
                features_extractor_kwargs=self.features_extractor_kwargs,
                share_features_extractor=self.share_features_extractor,
                optimizer_class=self.optimizer_class,
                optimizer_kwargs=self.optimizer_kwargs,
            )
        )
        return data

    @property
    def behavior(self) -> FeaturesNetwork:
        """What ``pretrain(objective="bc")`` trains."""
        raise NotImplementedError

    def set_objective(self, objective: str) -> None:
        """
        :param objective: What the coming updates train. With ``"bc"`` the loss of the behavior alone trains a shared
            features extractor, which no other loss would
        """
        self.behavior.trains_features_extractor = objective == "bc" or not self.share_features_extractor

    def set_hyperparameter(self, name: str, value: Any) -> None:
        """
        :param name: Name of an argument that the policy acts by
        :param value: Its new value
        """
        setattr(self, name, value)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self._predict(obs, deterministic=deterministic)

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


class BaseFlowPolicy(OfflineToOnlinePolicy):
    """
    Base of the policies that act with a flow: a behavior flow makes actions of noise, and of several candidates the
    critics choose one. Further arguments are those of :class:`OfflineToOnlinePolicy`.

    :param flow_layer_norm: Whether the velocity fields normalize after each activation; the critics always do
    :param flow_steps: Number of steps from noise to action of a fixed-step ``ode_method``
    :param ode_method: Any method of ``torchdiffeq.odeint``; ``"euler"`` is the paper's
    :param ode_options: ``rtol`` and ``atol`` of adaptive methods (1e-5 by default) and options of the solver
    :param best_of_n: Draw that many actions and take the one that the critics value most
    :raises ValueError: if a size is not positive or torchdiffeq does not take the method or its options
    """

    behavior_flow: VelocityField

    def __init__(
        self,
        *args: Any,
        flow_layer_norm: bool = False,
        flow_steps: int = 10,
        ode_method: str = "euler",
        ode_options: dict[str, Any] | None = None,
        best_of_n: int = 1,
        **kwargs: Any,
    ) -> None:
        check_positive_int("flow_steps", flow_steps)
        check_positive_int("best_of_n", best_of_n)
        check_ode_method(ode_method, ode_options)
        super().__init__(*args, layer_norm=flow_layer_norm, **kwargs)
        self.flow_steps = flow_steps
        self.ode_method = ode_method
        self.ode_options = ode_options
        self.best_of_n = best_of_n

    def _build_actors(self, shared_extractor: BaseFeaturesExtractor | None) -> None:
        self.behavior_flow = self.make_actor(VelocityField, shared_extractor)

    @property
    def behavior(self) -> VelocityField:
        return self.behavior_flow

    @property
    def actor(self) -> VelocityField:
        """The flow that is trained to act, as ``policy.actor`` of SB3's off-policy policies."""
        return self.behavior_flow

    def trained_networks(self) -> list[nn.Module]:
        return [self.behavior_flow, *super().trained_networks()]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        names = ("flow_steps", "ode_method", "ode_options", "best_of_n")
        parameters = super()._get_constructor_parameters()
        own = {"flow_layer_norm": parameters.pop("layer_norm"), **{name: getattr(self, name) for name in names}}
        return {**parameters, **own}

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
        draw = draw or partial(th.randn, device=self.device)
        return SamplingNoise(draw(self.best_of_n, batch_size, self.action_dim))

    def clone_actions(self, observations: PyTorchObs, x0: th.Tensor) -> th.Tensor:
        """
        :param observations: A batch of observations
        :param x0: Standard normal noise, shape (..., batch, action_dim)
        :return: Where the behavior flow ends: actions of a clone of the data in [-1, 1], same shape
        """
        return self.flow_actions(self.behavior_flow.conditioned_on(observations), x0)

    def candidate_actions(self, observations: PyTorchObs, noise: SamplingNoise) -> th.Tensor:
        """
        :param observations: A batch of observations
        :param noise: Noise of shape (n_samples, batch, action_dim)
        :return: An action in [-1, 1] of each noise, same shape
        """
        return self.clone_actions(observations, noise.x0)

    def value_of_candidates(self, q_values: th.Tensor) -> th.Tensor:
        """
        :param q_values: Q_i(s, a) of each candidate, shape (n_critics, n_samples, batch)
        :return: By what they are compared, shape (n_samples, batch)
        """
        return q_values.mean(dim=0)

    def sample_actions(self, observations: PyTorchObs, noise: SamplingNoise) -> th.Tensor:
        """
        Make actions from noise: the best of the candidates by :meth:`value_of_candidates`, where there are several.

        :param observations: A batch of observations
        :param noise: Noise of shape (n_samples, batch, action_dim)
        :return: Actions in [-1, 1], those of a chunk one after the other, shape (batch, action_dim)
        """
        candidates = self.candidate_actions(observations, noise)
        if len(candidates) == 1:
            return candidates[0]
        values = self.value_of_candidates(self.critic(self.critic.features(observations), candidates))
        best = values.argmax(dim=0).view(1, -1, 1)
        # In this form it can be exported for any number of observations
        return candidates.gather(0, best.expand(1, -1, candidates.shape[2]))[0]

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        draw = draw_from_observations(observation) if deterministic else None
        return self.sample_actions(observation, self.draw_noise(n_rows(observation), draw))


class ImagePolicy(OfflineToOnlinePolicy):
    """Of a policy class for images: ``NatureCNN`` is the default features extractor."""

    def __init__(
        self, *args: Any, features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN, **kwargs: Any
    ) -> None:
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)


class DictPolicy(OfflineToOnlinePolicy):
    """
    Of a policy class for Dict observations: ``CombinedExtractor`` is the default features extractor.

    :raises ValueError: if observations are no Dict
    """

    def __init__(self, observation_space: spaces.Space, *args: Any, **kwargs: Any) -> None:
        if not isinstance(observation_space, spaces.Dict):
            raise ValueError(
                f"MultiInputPolicy is for Dict observations, use MlpPolicy or CnnPolicy for {observation_space}."
            )
        super().__init__(observation_space, *args, **kwargs)
