"""Many runs of RL Zoo: tasks x algorithms x seeds, on this machine or on a Ray cluster."""

from sb3_qam.suite.launchers import run_locally, run_on_ray
from sb3_qam.suite.runs import OUTPUT, Run, execute, read_progress, read_suite
from sb3_qam.suite.sweep import sweep

__all__ = ["OUTPUT", "Run", "execute", "read_progress", "read_suite", "run_locally", "run_on_ray", "sweep"]
