"""QAM in RL Zoo: importing this package makes the algorithms known to the zoo's own commands."""

try:
    import rl_zoo3.train
except ImportError as error:
    raise ImportError(f"RL Zoo cannot be imported ({error}): pip install 'sb3-qam[zoo]'.") from error
from rl_zoo3 import ALGOS
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

from sb3_qam.environments import register_environments
from sb3_qam.qam.qam import QAM
from sb3_qam.zoo.experiment import ExperimentManager
from sb3_qam.zoo.search import SAMPLERS, convert_qam_params
from sb3_qam.zoo.variants import BAM, QAMF, TRQAM, QAMEdit

ALGORITHMS = {"qam": QAM, "qam_edit": QAMEdit, "qam_f": QAMF, "trqam": TRQAM, "bam": BAM}


def register() -> None:
    """
    Make QAM and its variants known to RL Zoo, with their configurations and search spaces, and the environments of
    the configurations to Gymnasium. Importing ``sb3_qam.zoo`` has done it.
    """
    for name, algorithm in ALGORITHMS.items():
        ALGOS[name] = algorithm
        HYPERPARAMS_SAMPLER[name] = SAMPLERS[name]
        HYPERPARAMS_CONVERTER[name] = convert_qam_params
    # The zoo looks for configurations in its own folder only, and has no other way to say where they are
    rl_zoo3.train.ExperimentManager = ExperimentManager  # type: ignore[misc]
    register_environments()


register()
