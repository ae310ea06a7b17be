"""Callbacks that look into training, in the offline phase as in the online one."""

from sb3_qam.common.callbacks.best_model import BestModelCallback
from sb3_qam.common.callbacks.flow_diagnostics import FlowDiagnosticsCallback
from sb3_qam.common.callbacks.offline_eval import OfflineEvalCallback

__all__ = ["BestModelCallback", "FlowDiagnosticsCallback", "OfflineEvalCallback"]
