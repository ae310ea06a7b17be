"""The state of every random generator that training draws from, so that a saved run resumes exactly where it was."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces


def get_random_state(action_space: spaces.Space, device: th.device) -> dict[str, Any]:
    """
    :param action_space: Its generator draws the actions of the random warm-up
    :param device: The device that training runs on
    :return: The states, for :func:`set_random_state`
    """
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": th.get_rng_state().numpy(),
        "cuda": th.cuda.get_rng_state(device).numpy() if device.type == "cuda" else None,
        "action_space": action_space.np_random.bit_generator.state,
    }


def set_random_state(state: dict[str, Any], action_space: spaces.Space, device: th.device) -> None:
    """
    :param state: What :func:`get_random_state` returned
    :param action_space: As above
    :param device: As above; the state of a GPU that the saved run did not have stays as it is
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    th.set_rng_state(th.from_numpy(state["torch"]))
    if device.type == "cuda" and state["cuda"] is not None:
        th.cuda.set_rng_state(th.from_numpy(state["cuda"]), device)
    action_space.np_random.bit_generator.state = state["action_space"]


@contextmanager
def preserved_rng(action_space: spaces.Space, device: th.device) -> Iterator[None]:
    """
    Afterwards the generators continue as if nothing had been drawn inside.

    :param action_space: As above
    :param device: As above
    """
    state = get_random_state(action_space, device)
    try:
        yield
    finally:
        set_random_state(state, action_space, device)


@contextmanager
def forked_rng(seed: int, action_space: spaces.Space, device: th.device) -> Iterator[None]:
    """
    Inside, the generators have a seed of their own; afterwards they continue as if nothing had been drawn.

    :param seed: Seed of the numbers inside
    :param action_space: As above
    :param device: As above
    """
    with preserved_rng(action_space, device):
        random.seed(seed)
        np.random.seed(seed)
        # th.manual_seed() would seed all GPUs, and only the state of this one is kept
        th.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with th.cuda.device(device):
                th.cuda.manual_seed(seed)
        yield
