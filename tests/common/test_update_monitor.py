"""Non-finite values are found, named and dated; means are those of the updates since the last read."""

import numpy as np
import pytest
import torch as th
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_qam import QAM
from sb3_qam.common.update_monitor import UpdateMonitor
from sb3_qam.networks.flows import FlowDivergence
from tests.conftest import write_dataset


def values(bc: float, critic: float) -> dict[str, th.Tensor]:
    return {"bc_loss": th.tensor(bc), "critic_loss": th.tensor(critic)}


def test_means_are_those_since_the_last_read():
    monitor = UpdateMonitor(check_interval=1)
    assert monitor.read_means() == {}
    monitor.add(1, values(1.0, 10.0))
    monitor.add(2, values(3.0, 30.0))
    assert monitor.read_means() == {"bc_loss": 2.0, "critic_loss": 20.0}
    monitor.add(3, values(5.0, 50.0))
    assert monitor.read_means() == {"bc_loss": 5.0, "critic_loss": 50.0}


def test_immediate_monitor_stops_in_the_very_update():
    monitor = UpdateMonitor(check_interval=1)
    monitor.add(1, values(1.0, 1.0))
    with pytest.raises(
        FloatingPointError, match=r"critic_loss not finite at update 2\. The parameters are those before"
    ):
        monitor.add(2, values(1.0, float("inf")))


@pytest.mark.parametrize("first_bad", [5, 42, 104])
def test_deferred_monitor_names_the_first_bad_update_at_most_an_interval_later(first_bad: int):
    monitor = UpdateMonitor(check_interval=100)
    added = []

    def run() -> None:
        for update in range(5, 300):
            added.append(update)
            monitor.add(update, values(float("nan") if update >= first_bad else 1.0, 1.0))

    with pytest.raises(FloatingPointError, match=rf"bc_loss not finite at update {first_bad}\."):
        run()
    assert 0 <= added[-1] - first_bad <= 100


def test_a_deferred_monitor_reads_nothing_back_in_between():
    """Reading a value back is what makes a program wait for a GPU."""
    reads = []

    class CountReads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is th.ops.aten._local_scalar_dense.default:
                reads.append(func)
            return func(*args, **(kwargs or {}))

    monitor = UpdateMonitor(check_interval=100)
    with CountReads():
        for update in range(99):
            monitor.add(update, values(1.0, 2.0))
            assert not reads
        monitor.add(99, values(1.0, 2.0))
    assert reads


@pytest.mark.gpu
def test_a_gpu_finds_non_finite_losses_within_the_interval(pendulum_dataset):
    model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, batch_size=16, device="cuda")
    model.pretrain(gradient_steps=20)
    with th.no_grad():
        next(model.policy.critic.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"critic_loss.* at update 21\."):
        model.pretrain(gradient_steps=150)
    assert model._n_updates <= 121


def test_the_end_of_a_phase_finds_what_the_interval_has_not():
    monitor = UpdateMonitor(check_interval=100)
    monitor.add(1, values(float("nan"), 1.0))
    with pytest.raises(FloatingPointError, match="bc_loss not finite at update 1"):
        monitor.check()


def test_only_a_cpu_checks_every_update():
    assert UpdateMonitor.for_device(th.device("cpu")).check_interval == 1
    assert UpdateMonitor.for_device(th.device("cuda")).check_interval == 100


@pytest.mark.parametrize(("reward", "loss"), [(1e30, "critic_loss")])
def test_training_stops_before_parameters_are_touched(reward: float, loss: str, pendulum_dataset):
    """A reward whose square is beyond float32."""
    spaces_ = pendulum_dataset.observation_space, pendulum_dataset.action_space
    episode = next(iter(pendulum_dataset))
    huge = write_dataset(
        [{"observations": episode.observations, "actions": episode.actions, "rewards": np.full(len(episode), reward)}],
        *spaces_,
    )
    model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, batch_size=16, seed=0)
    model.pretrain(gradient_steps=4)
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    with pytest.raises(FloatingPointError, match=rf"{loss}.* at update 5"):
        model.pretrain(huge, gradient_steps=10)
    assert model._n_updates == 4
    for name, tensor in model.policy.state_dict().items():
        assert th.equal(tensor, before[name]), name


def test_a_deferred_monitor_changes_no_number(pendulum_dataset):
    models = []
    for check_interval in (1, 100):
        model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, batch_size=16, seed=0)
        model._monitor = UpdateMonitor(check_interval)
        model.pretrain(gradient_steps=20, log_interval=10)
        models.append(model)
    for first, second in zip(*(model.policy.parameters() for model in models), strict=True):
        assert th.equal(first, second)


@pytest.mark.parametrize(
    ("method", "adjoint"),
    [
        *[(method, "lean") for method in ("euler", "midpoint", "rk4", "explicit_adams")],
        *[(method, "lean") for method in ("dopri5", "dopri8", "bosh3", "fehlberg2", "scipy_solver")],
        ("dopri5", "scalar"),
        ("dopri5", "bptt"),
    ],
)
def test_whatever_solves_the_flow_its_divergence_names_the_update(method: str, adjoint: str, pendulum_dataset):
    policy_kwargs = {"net_arch": [32], "ode_method": method}
    kwargs = {"batch_size": 4, "flow_steps": 3, "adjoint": adjoint, "seed": 0, "policy_kwargs": policy_kwargs}
    model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, learning_rate=1e30, **kwargs)
    with pytest.raises(FloatingPointError, match=r"Training stopped: .* at update 2\. The parameters are those before"):
        model.pretrain(gradient_steps=10)
    assert model._n_updates == 1


def test_an_update_before_the_divergence_that_was_not_finite_is_the_one_that_is_named():
    monitor = UpdateMonitor(check_interval=100)
    monitor.add(1, values(1.0, 1.0))
    monitor.add(2, values(float("nan"), 1.0))
    with pytest.raises(FloatingPointError, match=r"bc_loss not finite at update 2\."), monitor.during(3):
        raise FlowDivergence("no end")
