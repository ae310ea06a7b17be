"""Writing datasets: episodes of a policy, and data of other formats."""

from sb3_qam.recording.collect import collect
from sb3_qam.recording.ogbench import import_ogbench
from sb3_qam.recording.oracles import ogbench_oracle
from sb3_qam.recording.play import record_ogbench
from sb3_qam.recording.scripted import ScriptedPolicy

__all__ = ["ScriptedPolicy", "collect", "import_ogbench", "ogbench_oracle", "record_ogbench"]
