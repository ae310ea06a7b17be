"""QAM's variants as algorithms of their own: QAM with other defaults, so that a name is all that the zoo needs."""

from functools import partialmethod

from sb3_qam.qam.qam import QAM


class QAMEdit(QAM):
    """
    QAM-E: :class:`~sb3_qam.QAM` with ``edit_scale=0.1``.
    """

    __init__ = partialmethod(QAM.__init__, edit_scale=0.1)


class QAMF(QAM):
    """
    QAM-F: :class:`~sb3_qam.QAM` with ``distill_coef=30.0``.
    """

    __init__ = partialmethod(QAM.__init__, distill_coef=30.0)


class TRQAM(QAM):
    """
    TRQAM: :class:`~sb3_qam.QAM` with ``kl_budget=1.0``.
    """

    __init__ = partialmethod(QAM.__init__, kl_budget=1.0)


class BAM(QAM):
    """
    Back-propagation through the SDE, for comparison: :class:`~sb3_qam.QAM` with ``adjoint="bptt"``.
    """

    __init__ = partialmethod(QAM.__init__, adjoint="bptt")
