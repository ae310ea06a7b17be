"""Numbers that networks cannot compute with are refused where they are given."""

from typing import Any

import numpy as np
import pytest

from sb3_qam import QAM
from sb3_qam.utils.checks import check_in_range


@pytest.mark.parametrize("name", ["inverse_temperature", "kl_budget", "pessimism", "max_grad_norm", "gamma"])
@pytest.mark.parametrize("value", [10**400, 1e300, float("nan"), True, "1", int], ids=["huge", *"abcde"])
def test_numbers_that_float32_does_not_have(name: str, value: Any):
    with pytest.raises(ValueError, match=rf"{name} must be a finite number \(in float32\) .* got ") as error:
        QAM("FlowPolicy", "Pendulum-v1", **{name: value})
    assert len(str(error.value)) < 150


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.5), np.int64(1), np.float64(1)])
def test_numbers_of_any_type(value: Any):
    check_in_range("x", value, 0, 1)
    with pytest.raises(ValueError, match=r"x must be a finite number \(in float32\) greater than 1, got "):
        check_in_range("x", value, 1, low_excluded=True)
