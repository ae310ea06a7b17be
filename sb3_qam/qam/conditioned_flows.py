"""The flows of a policy, conditioned on the observations of a batch."""

from functools import cached_property

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_qam.networks.actors import VelocityField
from sb3_qam.networks.velocities import Velocity


class ConditionedFlows:
    """
    The velocities of all flows for the same observations. Each network extracts its features when it is first asked
    for, and once, with gradient if there is one where this object is made.

    :param behavior_flow: v_beta
    :param behavior_flow_target: Its Polyak average
    :param policy_flow: v_theta, or what is added to a behavior flow
    :param residual: Whether it is added
    :param observations: A batch of observations
    """

    def __init__(
        self,
        behavior_flow: VelocityField,
        behavior_flow_target: VelocityField,
        policy_flow: VelocityField,
        residual: bool,
        observations: PyTorchObs,
    ) -> None:
        self._fields = (behavior_flow, behavior_flow_target, policy_flow)
        self._residual = residual
        self._observations = observations
        self._with_gradient = th.is_grad_enabled()

    def _conditioned(self, field: VelocityField) -> Velocity:
        with th.set_grad_enabled(self._with_gradient):
            return field.conditioned_on(self._observations)

    @cached_property
    def behavior(self) -> Velocity:
        """v_beta"""
        return self._conditioned(self._fields[0])

    @cached_property
    def behavior_target(self) -> Velocity:
        """v_beta, its Polyak average"""
        return self._conditioned(self._fields[1])

    @cached_property
    def _policy_network(self) -> Velocity:
        return self._conditioned(self._fields[2])

    @property
    def policy(self) -> Velocity:
        """v_theta as it is trained: a residual one is added to the Polyak average of v_beta"""
        return self._beside(self.behavior_target) if self._residual else self._policy_network

    @property
    def acting_policy(self) -> Velocity:
        """v_theta as it acts: a residual one is added to v_beta itself, as the published code does"""
        return self._beside(self.behavior) if self._residual else self._policy_network

    def _beside(self, behavior_velocity: Velocity) -> Velocity:
        residual_velocity = self._policy_network
        return lambda x, t: behavior_velocity(x, t) + residual_velocity(x, t)
