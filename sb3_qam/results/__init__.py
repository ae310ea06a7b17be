"""What runs of RL Zoo have reached: read, compared, drawn."""

from sb3_qam.results.report import Report, make_report

__all__ = ["Report", "make_report"]
