"""Training with products in less than float32."""

import platform
import warnings

import torch as th

from sb3_qam.networks.cpu_kernels import HAS_BFLOAT16
from sb3_qam.utils.checks import check_one_of

# What autocast makes of float32; None: it stays
PRECISIONS = {"float32": None, "bf16": th.bfloat16}


def check_precision(precision: str, device: th.device) -> None:
    """
    Warn where the device computes with bfloat16 in software only.

    :param precision: One of ``PRECISIONS``
    :param device: Where to train
    :raises ValueError: if it is none of them
    """
    check_one_of("precision", precision, PRECISIONS)
    if precision == "bf16" and not has_bfloat16(device):
        warnings.warn(
            f"precision='bf16': {device.type!r} has no bfloat16 arithmetic, training may be slower than with "
            "precision='float32'."
        )


def has_bfloat16(device: th.device) -> bool:
    """
    :param device: A device
    :return: Whether its products of bfloat16 are done in hardware
    """
    if device.type == "cpu":
        # oneDNN would also use the wide registers of older x86 processors, which is slow
        is_x86 = platform.machine().lower() in ("x86_64", "amd64")
        return HAS_BFLOAT16 and (th.cpu._is_avx512_bf16_supported() or not is_x86)
    return device.type == "cuda" and th.cuda.is_bf16_supported(including_emulation=False)


def autocast(precision: str, device: th.device) -> th.autocast:
    """
    :param precision: One of ``PRECISIONS``
    :param device: Where the networks are
    :return: A context for one update, which does nothing in float32
    """
    dtype = PRECISIONS[precision]
    # A weight's copy that was made without gradient, in sampling, must not be taken where there is one
    return th.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=False)
