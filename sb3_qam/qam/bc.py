"""Behavior cloning by the behavior flow of QAM."""

from sb3_qam.qam.qam import QAM


class BC(QAM):
    """
    Clones the data by conditional flow matching, offline and online: no critic and no policy flow is trained, and the
    behavior flow acts alone. Arguments are those of :class:`~sb3_qam.QAM`.
    """

    def _set_objective(self, objective: str) -> None:
        super()._set_objective("bc")
