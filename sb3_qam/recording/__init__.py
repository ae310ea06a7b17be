"""Writing datasets: episodes of a policy, and data of other formats."""

from sb3_qam.recording.arrays import import_array_file, import_arrays
from sb3_qam.recording.collect import collect
from sb3_qam.recording.lerobot import import_lerobot
from sb3_qam.recording.ogbench import import_ogbench
from sb3_qam.recording.oracles import ogbench_oracle
from sb3_qam.recording.play import record_ogbench
from sb3_qam.recording.robomimic import import_robomimic
from sb3_qam.recording.scripted import ScriptedPolicy

__all__ = [
    "ScriptedPolicy",
    "collect",
    "import_array_file",
    "import_arrays",
    "import_lerobot",
    "import_ogbench",
    "import_robomimic",
    "ogbench_oracle",
    "record_ogbench",
]
