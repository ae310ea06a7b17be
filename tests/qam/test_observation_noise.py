"""deterministic=True: the noise is a function of the observation, and as if drawn from one observation to the next."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from sb3_qam import QAM, CnnPolicy, FlowPolicy, MultiInputPolicy
from sb3_qam.common.noise import draw_from_observations
from sb3_qam.common.phases import SpacesOnlyEnv

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (3,))
ACTIONS = spaces.Box(-1.0, 1.0, (2,))
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
POLICIES = {
    "vector": (FlowPolicy, OBSERVATIONS, {}),
    "chunk": (FlowPolicy, OBSERVATIONS, {"chunk_size": 4}),
    "edit, best of n": (FlowPolicy, OBSERVATIONS, {"edit_scale": 0.3, "best_of_n": 3}),
    "one-step": (FlowPolicy, OBSERVATIONS, {"distill_coef": 1.0}),
    "Discrete": (FlowPolicy, spaces.Discrete(1000), {}),
    "image": (CnnPolicy, IMAGE, {}),
    "Dict": (MultiInputPolicy, spaces.Dict(b=OBSERVATIONS, a=IMAGE, c=spaces.Discrete(5)), {}),
}


def make_policy(name: str) -> FlowPolicy:
    policy_class, space, kwargs = POLICIES[name]
    th.manual_seed(0)
    return policy_class(space, ACTIONS, lambda _: 1e-3, net_arch=[16], flow_steps=4, **kwargs)


def rows_of(observations, rows):
    if isinstance(observations, dict):
        return {key: part[rows] for key, part in observations.items()}
    return observations[rows]


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=10)
@given(data=st.data())
def test_an_action_depends_on_its_observation_alone(name: str, data: st.DataObject):
    policy = make_policy(name)
    space = policy.observation_space
    space.seed(data.draw(st.integers(0, 2**31)))
    samples = [space.sample() for _ in range(6)]
    batch = (
        {k: np.stack([s[k] for s in samples]) for k in space} if isinstance(space, spaces.Dict) else np.stack(samples)
    )
    together = policy.predict(batch, deterministic=True)[0]
    order = data.draw(st.permutations(range(6)))[: data.draw(st.integers(1, 6))]
    # Another position and batch size, another state of the generators, after other calls
    th.manual_seed(data.draw(st.integers(0, 100)))
    np.random.seed(data.draw(st.integers(0, 100)))
    policy.predict(batch)
    state = th.get_rng_state()
    again = policy.predict(rows_of(batch, list(order)), deterministic=True)[0]
    assert th.equal(th.get_rng_state(), state)
    np.testing.assert_allclose(again, together[list(order)], rtol=1e-4, atol=1e-5)


# From tiny to huge
FIXED_OBSERVATIONS = th.tensor([[0.0, 1.0, -2.5], [1e-3, 3e8, 7.0]])


def test_noise_is_the_same_in_every_run():
    noise = draw_from_observations(FIXED_OBSERVATIONS)(2, 2, 2)
    # Written down once: another machine, or another release, gives the same
    expected = [
        [[-0.6406956, 0.03496405], [0.81740624, -0.19833413]],
        [[2.180122, -1.0797408], [0.3981601, 0.8606689]],
    ]
    np.testing.assert_allclose(noise.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_noise_on_a_gpu_is_that_of_a_cpu():
    on_gpu = draw_from_observations(FIXED_OBSERVATIONS.cuda())(2, 2, 2)
    assert th.equal(on_gpu.cpu(), draw_from_observations(FIXED_OBSERVATIONS)(2, 2, 2))


def test_the_order_of_keys_and_the_sign_of_zero_do_not_matter():
    a, b = th.randn(4, 3), th.randn(4, 2)
    first = draw_from_observations({"a": a, "b": b})(1, 4, 5)
    assert th.equal(draw_from_observations({"b": b, "a": a})(1, 4, 5), first)
    assert th.equal(draw_from_observations(th.zeros(1, 3))(1, 1, 5), draw_from_observations(-th.zeros(1, 3))(1, 1, 5))


@settings(max_examples=100)
@given(
    observation=hnp.arrays(np.float32, 5, elements=st.floats(-1e6, 1e6, width=32)),
    position=st.integers(0, 4),
)
def test_an_observation_that_differs_in_one_bit_gets_other_noise(observation: np.ndarray, position: int):
    other = observation.copy()
    other[position] = np.nextafter(other[position], np.float32(np.inf))
    first, second = (draw_from_observations(th.tensor(each[None]))(1, 1, 8) for each in (observation, other))
    assert (first != second).all()


def test_an_observation_whose_values_change_places_gets_other_noise():
    first, second = (draw_from_observations(th.tensor([values]))(1, 1, 8) for values in ([1.0, 2.0], [2.0, 1.0]))
    assert (first != second).all()


def trajectory(step: float) -> th.Tensor:
    """20,000 successive observations that differ by ``step``."""
    return (step * th.arange(20_000, dtype=th.float64)[:, None] * th.tensor([[1.0, -0.5, 0.25]])).float()


@pytest.mark.parametrize(
    "observations",
    [th.randn(20_000, 3, generator=th.Generator().manual_seed(0)), trajectory(1e-3), trajectory(1e-6)],
    ids=["random", "steps of 1e-3", "steps of 1e-6"],
)
def test_noise_along_observations_is_as_if_drawn(observations: th.Tensor):
    distinct = observations.unique(dim=0)
    noise = draw_from_observations(distinct)(2, len(distinct), 3).double().numpy()
    flat = noise.transpose(1, 0, 2).reshape(len(distinct), -1)
    for column in flat.T:
        assert stats.kstest(column, "norm").pvalue > 1e-3
    # Neither from one observation to the next nor between dimensions and samples
    bound = 4 / len(flat) ** 0.5
    assert np.abs(np.corrcoef(flat, rowvar=False) - np.eye(flat.shape[1])).max() < bound
    assert np.abs(np.corrcoef(flat[:-1], flat[1:], rowvar=False)[: flat.shape[1], flat.shape[1] :]).max() < bound


def test_later_draws_for_an_observation_are_independent_of_earlier_ones():
    draw = draw_from_observations(th.randn(20_000, 2))
    first, second = draw(1, 20_000, 1).flatten(), draw(1, 20_000, 1).flatten()
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / 20_000**0.5


def test_predict_of_a_model_does_not_depend_on_its_seed():
    env = SpacesOnlyEnv(OBSERVATIONS, ACTIONS)
    model = QAM("FlowPolicy", env, seed=0, policy_kwargs={"net_arch": [16]})
    observation = np.ones(3, np.float32)
    first = model.predict(observation, deterministic=True)[0]
    model.set_random_seed(7)
    np.testing.assert_array_equal(model.predict(observation, deterministic=True)[0], first)
