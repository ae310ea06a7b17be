"""Q-learning with Adjoint Matching: the algorithm, in reading order."""

import io
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule, TensorDict

from sb3_qam.common.buffers import TransitionBatch
from sb3_qam.common.cuda_graph import GraphedUpdates, constants_of
from sb3_qam.common.optimization import JointOptimization
from sb3_qam.common.policies import PolicyArgument
from sb3_qam.common.precision import autocast
from sb3_qam.common.saving import read_attributes
from sb3_qam.datasets.rewards import RewardTransform
from sb3_qam.datasets.sources import OfflineDataset
from sb3_qam.networks.actors import VelocityField
from sb3_qam.networks.critics import pessimistic_value
from sb3_qam.networks.features import frozen
from sb3_qam.networks.flows import flow_matching_loss
from sb3_qam.qam import diagnostics
from sb3_qam.qam.adjoint_matching import ADJOINT_METHODS, AdjointMethod, Critics
from sb3_qam.qam.arguments import check_arguments
from sb3_qam.qam.behavior import read_behavior
from sb3_qam.qam.noise import PathNoise, UpdateNoise
from sb3_qam.qam.policies import CnnPolicy, FlowPolicy, MlpPolicy, MultiInputPolicy
from sb3_qam.qam.temperature import FixedTemperature, TrustRegion


class QAM(JointOptimization):
    r"""
    Q-learning with Adjoint Matching (QAM)

    A policy flow is trained toward the behavior policy tilted by the critic, without back-propagation through the
    steps from noise to action:

    .. math:: \pi(a \mid s) \propto \pi_\beta(a \mid s) \exp(w Q(s, a))

    Paper: Li & Levine, https://arxiv.org/abs/2601.14234, on adjoint matching, https://arxiv.org/abs/2409.08861

    :param policy: The policy model to use (FlowPolicy, CnnPolicy, MultiInputPolicy; MlpPolicy is FlowPolicy)
    :param env: The environment to learn from (if registered in Gym, can be str). Can be None for loading trained
        models, and with ``offline_dataset`` for training offline alone
    :param learning_rate: learning rate of the one optimizer for all networks,
        it can be a function of the current progress remaining (from 1 to 0)
    :param buffer_size: size of the replay buffer, which holds online experience only
    :param learning_starts: how many steps of the model to collect transitions for before learning starts.
        Actions are random until then, but not after an offline phase
    :param batch_size: Minibatch size for each gradient update
    :param tau: the soft update coefficient ("Polyak update", between 0 and 1) of the critics' and the behavior
        flow's targets
    :param gamma: the discount factor
    :param train_freq: Update the model every ``train_freq`` steps. Alternatively pass a tuple of frequency and unit
        like ``(5, "step")`` or ``(2, "episode")``.
    :param gradient_steps: How many gradient steps to do after each rollout (see ``train_freq``)
        Set to ``-1`` means to do as many gradient steps as steps done in the environment
        during the rollout.
    :param action_noise: the action noise type (None by default), added to the policy's own noise
    :param replay_buffer_class: Replay buffer class to use (for instance ``HerReplayBuffer``).
        If ``None``, it will be automatically selected.
    :param replay_buffer_kwargs: Keyword arguments to pass to the replay buffer on creation.
    :param optimize_memory_usage: Enable a memory efficient variant of the replay buffer
        at a cost of more complexity.
    :param n_steps: Number of steps of the returns (1 by default). Samples whose steps would cross the end of a
        trajectory have no weight. A custom ``replay_buffer_class`` computes its own returns
    :param target_update_interval: update the target networks every ``target_update_interval`` gradient steps, counted
        over the whole training and not within one call of ``train()``
    :param inverse_temperature: w >= 0, how strongly the critic tilts the policy: the right value depends on the
        scale of the returns. At 0, here or at loading, the behavior flow acts in place of the policy flow, which is
        neither trained nor evaluated: a clone of the data, unless a variant edits, distills or selects its actions.
        By default 3, and 1 where ``kl_budget`` is given, which allows no other
    :param chunk_size: Number h of actions in a chunk. The flow acts on whole chunks, which are executed open loop
        and have the return of their own h steps (Q-chunking, https://arxiv.org/abs/2507.07969)
    :param best_of_n: Draw that many actions, in acting and in the target, and take the one of the highest mean value
    :param edit_scale: c > 0 for QAM-E: a learned edit changes each dimension of the flow's action by at most c
    :param distill_coef: alpha > 0 for QAM-F: a one-step policy that is distilled from the flow acts in its place
    :param residual: Learn the policy flow as an addition to the behavior flow's target, beginning at 0
    :param adjoint: What the policy flow learns from: ``"lean"``, the paper's; ``"scalar"``, that of SQAM
        (https://arxiv.org/abs/2610.10437), without the velocity's Jacobian; ``"bptt"``, back-propagation through the
        SDE, for comparison
    :param kl_budget: epsilon > 0 for TRQAM (https://arxiv.org/abs/2605.27079): the temperature is learned so that the
        policy's SDE diverges from the behavior's by that many nats per environment step
    :param value_penalty: c >= 0, a term c E[Q(s, a_policy) - Q(s, a)] of the critics' loss, which keeps values of the
        policy's actions from rising above those of the data. SQAM has 0.3
    :param flow_steps: Number of steps N from noise to action. The paper's success was 43% with 20, 40% with 10, 13%
        with 3 and 3% with 1
    :param pessimism: rho >= 0, how many standard deviations of the critics are taken off the target value
    :param max_grad_norm: The maximum norm of the gradient of all networks together, ``math.inf`` for no clipping
    :param offline_dataset: Id or folder of a Minari dataset, a dataset object, a replay buffer of SB3, or a list of
        these. An id that is not in the local cache is downloaded. With ``env=None`` the model takes its spaces from it.
        Ids and folders are stored with the model; objects have to be given again to ``load()``
    :param offline_steps: Gradient steps on the dataset alone before ``learn()`` takes its first environment step
    :param bc_steps: Gradient steps of ``pretrain(objective="bc")`` that ``learn()`` takes before these, if none
        of these has been taken
    :param offline_fraction: Share of each online batch that comes from the dataset, in [0, 1]. ``None`` draws
        uniformly from the union of offline and online data
    :param offline_storage: ``"memory"``; ``"memmap"`` for datasets that do not fit into it: they are written to files
        once, and batches are read from there; or ``"cuda"`` to have them on the GPU as well, where batches are
        gathered without a copy
    :param reward_transform: How to transform rewards and terminations, offline and online: a ``RewardTransform``, or
        its arguments as a dict
    :param random_shift: Shift the images of training batches by up to that many pixels at random (DrQ,
        https://arxiv.org/abs/2004.13649, has 4), also those in Dicts, 0 for not at all. Acting sees them as they are
    :param precision: Precision of matrix products in training: ``"float32"``, or ``"bf16"``, PyTorch's autocast to
        bfloat16, on a CPU or GPU that has it. Parameters, losses and the flow's steps stay float32, and so does acting
    :param cuda_graph: Whether to run each update on a GPU as one CUDA graph, which is recorded after a few ordinary
        updates. It takes Euler steps alone, and networks and features extractors that read no values back. On other
        devices it does nothing
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
        the reported success rate, mean episode length, and mean reward over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation, see :class:`FlowPolicy`
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for
        debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: if an argument is out of range, two arguments exclude each other, the action space is not a
        bounded Box, or the dataset is unusable or does not fit the environment
    :raises FileNotFoundError: if the dataset is not in the local Minari cache and cannot be downloaded
    :raises TypeError: if ``env`` is not an environment, or ``offline_dataset`` not a dataset
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "FlowPolicy": FlowPolicy,
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: FlowPolicy
    adjoint_method: AdjointMethod
    actor: VelocityField
    # What the policy acts by: setting it on the model reaches the policy. At inverse temperature 0 that is the
    # behavior flow
    inverse_temperature = PolicyArgument[float]("acts_as")
    flow_steps = PolicyArgument[int]()
    best_of_n = PolicyArgument[int]()
    edit_scale = PolicyArgument[float]()
    distill_coef = PolicyArgument[float]()

    def __init__(
        self,
        policy: str | type[FlowPolicy],
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,  # 1e6
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        target_update_interval: int = 1,
        inverse_temperature: float | None = None,
        chunk_size: int = 1,
        best_of_n: int = 1,
        edit_scale: float = 0.0,
        distill_coef: float = 0.0,
        residual: bool = False,
        adjoint: str = "lean",
        kl_budget: float | None = None,
        value_penalty: float = 0.0,
        flow_steps: int = 10,
        pessimism: float = 0.5,
        max_grad_norm: float = 1.0,
        offline_dataset: OfflineDataset | None = None,
        offline_steps: int = 0,
        bc_steps: int = 0,
        offline_fraction: float | None = None,
        offline_storage: str = "memory",
        reward_transform: RewardTransform | dict[str, Any] | None = None,
        random_shift: int = 0,
        precision: str = "float32",
        cuda_graph: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            chunk_size=chunk_size,
            target_update_interval=target_update_interval,
            pessimism=pessimism,
            max_grad_norm=max_grad_norm,
            offline_dataset=offline_dataset,
            offline_steps=offline_steps,
            bc_steps=bc_steps,
            offline_fraction=offline_fraction,
            offline_storage=offline_storage,
            reward_transform=reward_transform,
            random_shift=random_shift,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
        )
        # None is resolved in check_arguments(), also after load(path, inverse_temperature=None)
        self.inverse_temperature = inverse_temperature  # type: ignore[assignment]
        self.best_of_n = best_of_n
        self.edit_scale = edit_scale
        self.distill_coef = distill_coef
        self.residual = residual
        self.adjoint = adjoint
        self.kl_budget = kl_budget
        self.value_penalty = value_penalty
        self.flow_steps = flow_steps
        self.precision = precision
        self.cuda_graph = cuda_graph
        # Whether the policy flow was left out of the last update: it then starts from the behavior flow
        self._is_policy_flow_stale = False

        if _init_setup_model:
            self._setup_model()
            self._check_offline_dataset()

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        check_arguments(self)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.adjoint_method = ADJOINT_METHODS[self.adjoint]
        # Of the algorithm and not of the policy, so that a model can be loaded with or without kl_budget
        self.kl_lambda, self.kl_average = th.ones((), device=self.device), th.zeros((), device=self.device)
        self.temperature: FixedTemperature | TrustRegion = FixedTemperature()
        if self.kl_budget is not None:
            self.temperature = TrustRegion(self.kl_budget, self.kl_lambda, self.kl_average)
        self._graphed_updates: GraphedUpdates | None = None
        if self.cuda_graph and self.device.type == "cuda":
            self._graphed_updates = GraphedUpdates(self.policy.optimizer, self._monitor)

    def _network_structure(self) -> dict[str, Any]:
        heads = {name: "positive" if getattr(self, name) > 0 else 0 for name in ("edit_scale", "distill_coef")}
        return {**super()._network_structure(), **heads, "residual": self.residual}

    def _acting_kwargs(self) -> dict[str, Any]:
        names = ("flow_steps", "best_of_n", "edit_scale", "distill_coef", "residual")
        own = {name: getattr(self, name) for name in names}
        return {**super()._acting_kwargs(), "acts_as": self._actor(), **own}

    def _create_aliases(self) -> None:
        super()._create_aliases()
        self.actor = self.policy.policy_flow

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """
        Update the networks ``gradient_steps`` times: each time all losses are taken at the same parameters and
        one optimizer step follows.

        :param gradient_steps: Number of updates
        :param batch_size: Number of samples of each update
        :raises FloatingPointError: if a loss is not finite; on a CPU no parameter has been changed by it
        """
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        # Update learning rate according to lr schedule
        self._update_learning_rate(self.policy.optimizer)
        # A callback may have changed the temperature
        self._set_objective(self._objective)

        update_networks = {"full": self._update, "bc": self._update_bc}[self._objective]

        def update(batch: TransitionBatch, noise: UpdateNoise) -> None:
            with self._monitor.during(self._n_updates + 1), autocast(self.precision, self.device):
                update_networks(batch, noise)

        for _ in range(gradient_steps):
            batch, noise = self._sample_batch(batch_size), self._sample_noise(batch_size)
            if self._graphed_updates is None:
                update(batch, noise)
            else:
                constants = (self._targets_are_due(), self._objective, constants_of(self, self.policy))
                self._graphed_updates(self._n_updates + 1, update, constants, batch, noise)
            self._n_updates += 1

        # The losses follow in dump_logs(): reading them here would make every update wait for a GPU
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _update(self, batch: TransitionBatch, noise: UpdateNoise) -> None:
        """
        One update of QAM.

        :param batch: What to learn from
        :param noise: Every random draw
        """
        # TD target: what the policy does next, valued by the target critics
        target = self.td_target(batch, noise)

        # Critic loss: every Q_i(s, a) is regressed on it
        features = self.critic.features(batch.observations)
        q_values = self.critic(features, batch.actions)
        critic_loss = (batch.valid * (q_values - target) ** 2).mean()
        losses = {"critic_loss": critic_loss}
        reported = {"q_mean": q_values.mean(), "q_std": q_values.std(dim=0, correction=0).mean()}

        # Behavior loss: conditional flow matching clones the data
        flows = self.policy.flows(batch.observations)
        losses["bc_loss"] = flow_matching_loss(flows.behavior, batch.actions, noise.bc_x0, noise.bc_t, batch.valid)

        critics = self._critics(batch, features)
        if noise.path is not None:
            method = self.adjoint_method
            # The policy's path, from noise to an action
            path = method.path(flows, noise.path)
            # Terminal adjoint: the gradient of -w Q where the path ends (for back-propagation, the cost itself)
            terminal = method.terminal(critics, path, self.inverse_temperature)
            # Lean adjoint: that gradient, carried back along the path
            adjoints = method.adjoints(flows, path, terminal)
            # Matching loss: the velocity that the adjoint asks for
            losses["adjoint_loss"] = method.loss(path, adjoints, self.temperature.scale_sigma)
            # Value penalty: of all samples, as in the published code, not only of valid ones
            if self.value_penalty > 0:
                policy_value = self.critic(features, path.action.detach().clamp(-1, 1)).mean()
                losses["value_penalty"] = self.value_penalty * (policy_value - q_values.mean())
            reported |= {
                **method.diagnostics(path, adjoints),
                "path_kl": path.kl() / self.chunk_size,
                **self.temperature.diagnostics(),
            }

        # Head losses: QAM-E and QAM-F train a network that the flow's actions go through
        head = self.policy.head.losses(
            batch.observations,
            lambda x0: self.policy.flow_actions(self.policy.acting.velocity(flows), x0),
            lambda actions: critics.online(actions).mean(dim=0),
            noise.head,
        )
        self._optimize({**losses, **head.losses}, {**reported, **head.diagnostics}, self.policy.target_pairs())
        if noise.path is not None:
            self.temperature.update(reported["path_kl"])

    def bc_loss(self, batch: TransitionBatch, noise: UpdateNoise) -> th.Tensor:
        velocity = self.policy.behavior_flow.conditioned_on(batch.observations)
        return flow_matching_loss(velocity, batch.actions, noise.bc_x0, noise.bc_t, batch.valid)

    @th.no_grad()
    def td_target(self, batch: TransitionBatch, noise: UpdateNoise) -> th.Tensor:
        """
        y = R_h + gamma^h m (mean_i Q_i(s', a') - rho std_i Q_i(s', a')) with target critics, a' from the policy.

        :param batch: A batch
        :param noise: Noise of its update
        :return: y, shape (batch,)
        """
        assert noise.next_action is not None  # for mypy
        next_actions = self.policy.sample_actions(batch.next_observations, noise.next_action)
        next_q_values = self.critic_target(self.critic_target.features(batch.next_observations), next_actions)
        return batch.rewards + batch.discounts * batch.masks * pessimistic_value(next_q_values, self.pessimism)

    def _critics(self, batch: TransitionBatch, features: th.Tensor) -> Critics:
        """
        :param batch: A batch
        :param features: What the online critics make of its observations
        :return: The critics as functions of actions
        """

        def online(actions: th.Tensor) -> th.Tensor:
            with frozen(self.critic):
                return self.critic(features.detach(), actions)

        def target(actions: th.Tensor) -> th.Tensor:
            # Features are extracted when it is called
            return self.critic_target(self.critic_target.features(batch.observations), actions)

        return Critics(online, target, self.pessimism)

    def _sample_noise(self, batch_size: int) -> UpdateNoise:
        """
        :param batch_size: Number of samples of the update
        :return: Every random draw of one update
        """
        shape = (batch_size, self.policy.action_dim)
        draw, head = partial(th.randn, device=self.device), self.policy.head
        full = self._objective == "full"
        return UpdateNoise(
            next_action=self.policy.draw_noise(batch_size) if full else None,
            bc_x0=draw(*shape),
            bc_t=th.rand(batch_size, 1, device=self.device),
            path=PathNoise(draw(*shape), draw(self.flow_steps, *shape)) if self.trains_policy_flow else None,
            head=head.draw_noise(draw, *shape) if full and head.learns else None,
        )

    @property
    def trains_policy_flow(self) -> bool:
        """
        Whether updates train the policy flow: not at inverse temperature 0, nor while the behavior alone is trained.
        """
        return self._objective == "full" and self.inverse_temperature > 0

    def _set_objective(self, objective: str) -> None:
        super()._set_objective(objective)
        if self.trains_policy_flow and self._is_policy_flow_stale:
            self.policy.start_from_behavior()
            self.temperature.reset()
        self._is_policy_flow_stale = not self.trains_policy_flow
        # The flow that was trained last
        self.policy.acts_as = self._actor()

    def _actor(self) -> str:
        """:return: What acts, one of the policy's ACTORS"""
        if self._objective == "bc":
            return "bc"
        return "behavior" if self.inverse_temperature == 0 or self._is_policy_flow_stale else "policy"

    def flow_diagnostics(self, n_states: int) -> dict[str, th.Tensor]:
        return diagnostics.flow_diagnostics(self, n_states)

    def _policy_values(self, observations: PyTorchObs, noise: UpdateNoise) -> th.Tensor:
        assert noise.next_action is not None  # for mypy
        actions = self.policy.sample_actions(observations, noise.next_action)
        return self.critic(self.critic.features(observations), actions)

    def load_behavior(self, source: "QAM | str | Path | io.BufferedIOBase") -> None:
        """
        Take over the behavior flow of another model, whatever its variant: this one then acts as that clone, and
        its policy flow starts from it when training continues.

        :param source: A model, or the path or file of a saved one, with the same spaces, ``chunk_size``, and sizes,
            activation and features extractor of the velocity fields
        :raises ValueError: if the flow does not fit; nothing has been loaded then
        :raises TypeError: if it is neither a model nor a path or file
        """
        behavior = read_behavior(source, self.device)
        behavior.check_fits(read_behavior(self, self.device))
        self.policy.load_state_dict({**self.policy.state_dict(), **behavior.parameters})
        self._has_learned = True
        self._set_objective("bc")

    def set_parameters(
        self,
        load_path_or_dict: str | TensorDict | Any,
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """
        Load parameters from a given zip-file or a nested dictionary containing parameters for different modules (see
        ``get_parameters``). Of a file also who acts, the clone or the policy, and the learned temperature.

        :param load_path_or_dict: Location of the saved data (path or file-like), or a nested dictionary
        :param exact_match: If True, the given parameters should include parameters for each module and each of their
            parameters, otherwise raises an Exception
        :param device: Device on which the code should run.
        """
        super().set_parameters(load_path_or_dict, exact_match, device)
        for group in self.policy.optimizer.param_groups if self.device.type != "cuda" else []:
            # Of CUDA graphs; other devices refuse it
            if "capturable" in group:
                group["capturable"] = self.policy.optimizer.defaults["capturable"]
        if isinstance(load_path_or_dict, dict):
            return
        attributes = read_attributes(load_path_or_dict)
        _, _, tensors = load_from_zip_file(load_path_or_dict, load_data=False, device=self.device)
        for name in ("_objective", "_is_policy_flow_stale"):
            setattr(self, name, attributes.get(name, getattr(self, name)))
        for name in ("kl_lambda", "kl_average"):
            getattr(self, name).copy_((tensors or {}).get(name, getattr(self, name)))
        self.policy.acts_as = self._actor()

    def _excluded_save_params(self) -> list[str]:
        derived = ("_graphed_updates", "adjoint_method", "temperature", "kl_lambda", "kl_average")
        return [*super()._excluded_save_params(), *derived]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules, tensors = super()._get_torch_save_params()
        return modules, tensors if self.kl_budget is None else [*tensors, "kl_lambda", "kl_average"]
