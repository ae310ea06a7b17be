"""Training in bfloat16 is training, to the rounding of bfloat16, and what comes out is a float32 model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.envs import FakeImageEnv
from torch import nn

from sb3_qam import QAM
from sb3_qam.common import precision
from tests.qam.test_variants import SMALL, VARIANTS


class LossesOfQAM(QAM):
    """Keeps the losses of each update."""

    losses: list[dict[str, float]]

    def _optimize(self, losses: dict[str, th.Tensor], reported: dict[str, th.Tensor], targets: Any) -> None:
        assert all(value.dtype == th.float32 for value in {**losses, **reported}.values())
        self.losses.append({name: float(value.detach()) for name, value in losses.items()})
        super()._optimize(losses, reported, targets)


def train(dataset: Any, n_updates: int = 2, **kwargs: Any) -> LossesOfQAM:
    model = LossesOfQAM("FlowPolicy", offline_dataset=dataset, device="cpu", **{**SMALL, **kwargs})
    model.losses = []
    return model.pretrain(gradient_steps=n_updates)


@pytest.mark.parametrize("activation", [None, nn.ReLU], ids=["fused", "module by module"])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_losses_are_those_of_float32_to_rounding(variant: dict, activation: type[nn.Module] | None, pendulum_dataset):
    policy_kwargs = {"net_arch": [16, 16], **({} if activation is None else {"activation_fn": activation})}
    models = [
        train(pendulum_dataset, precision=name, policy_kwargs=policy_kwargs, **variant) for name in ("bf16", "float32")
    ]
    assert any(
        not th.equal(one, other) for one, other in zip(*(model.policy.parameters() for model in models), strict=True)
    )
    assert all(parameter.dtype == th.float32 for parameter in models[0].policy.parameters())
    for got, expected in zip(models[0].losses, models[1].losses, strict=True):
        assert got == pytest.approx(expected, rel=0.15, abs=0.02)


def test_acting_and_files_are_those_of_float32(pendulum_dataset, tmp_path: Path):
    model = train(pendulum_dataset, precision="bf16")
    model.save(tmp_path / "model")
    loaded, exact = QAM.load(tmp_path / "model"), QAM.load(tmp_path / "model", precision="float32")
    assert (loaded.precision, exact.precision) == ("bf16", "float32")
    observations = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    actions = []
    for each in (loaded, exact):
        each.set_random_seed(0)
        actions.append(each.predict(observations)[0])
    np.testing.assert_array_equal(*actions)


@pytest.mark.parametrize(("batch_size", "width"), [(8, 16), (32, 128)])
def test_images_too(batch_size: int, width: int):
    env = FakeImageEnv(screen_height=36, screen_width=36, discrete=False)
    sizes = {"batch_size": batch_size, "policy_kwargs": {"net_arch": [width, width]}}
    model = LossesOfQAM("CnnPolicy", env, precision="bf16", device="cpu", learning_starts=4, **{**SMALL, **sizes})
    model.losses = []
    extractor = model.critic.features_extractor
    before = [parameter.detach().clone() for parameter in extractor.parameters()]
    model.learn(8)
    assert len(model.losses) > 0
    assert all(not th.equal(one, other) for one, other in zip(before, extractor.parameters(), strict=True))


def test_where_bfloat16_is_slow_it_is_said(monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    with pytest.warns(UserWarning, match=r"precision='bf16': 'cpu' has no bfloat16 arithmetic"):
        QAM("FlowPolicy", "Pendulum-v1", precision="bf16", device="cpu")


@pytest.mark.parametrize("value", ["float16", "bfloat16", None, 32])
def test_other_precisions_are_refused(value: Any):
    with pytest.raises(ValueError, match=r"precision must be one of 'float32', 'bf16', got " + repr(value)):
        QAM("FlowPolicy", "Pendulum-v1", precision=value)
