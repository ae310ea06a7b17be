"""The callbacks of this package, for QAM beside those of SB3."""

from sb3_qam.common.callbacks import BestModelCallback, FlowDiagnosticsCallback, OfflineEvalCallback

__all__ = ["BestModelCallback", "FlowDiagnosticsCallback", "OfflineEvalCallback"]
