"""The algorithms in RL Zoo: importing this package makes the algorithms known to the zoo's own commands."""

from functools import partial, partialmethod

try:
    import rl_zoo3.train
    from rl_zoo3.train import train
except ImportError as error:
    raise ImportError(f"RL Zoo cannot be imported ({error}): pip install 'sb3-qam[zoo]'.") from error
from rl_zoo3 import ALGOS, create_test_env
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

from sb3_qam.common.offline_to_online import OfflineToOnlineAlgorithm
from sb3_qam.environments import register_environments
from sb3_qam.variants import VARIANTS, Variant
from sb3_qam.zoo.experiment import ExperimentManager
from sb3_qam.zoo.search import convert_params, sample_params


def algorithm_class(variant: Variant) -> type[OfflineToOnlineAlgorithm]:
    """
    :param variant: A variant
    :return: Its algorithm with its defaults, so that a name is all that the zoo needs
    """
    if not variant.defaults:
        return variant.algorithm
    given = ", ".join(f"{name}={value!r}" for name, value in variant.defaults.items())
    members = {
        "__doc__": f"{variant.title}: :class:`~sb3_qam.{variant.algorithm.__name__}` with ``{given}``.",
        "__init__": partialmethod(variant.algorithm.__init__, **variant.defaults),
        "__module__": __name__,
    }
    return type(variant.title.replace("-", "_"), (variant.algorithm,), members)


__all__ = ["ALGORITHMS", "create_test_env", "register", "train"]

ALGORITHMS = {name: algorithm_class(variant) for name, variant in VARIANTS.items()}
# Where pickle looks for classes
globals().update({each.__name__: each for each in ALGORITHMS.values()})


def register() -> None:
    """
    Make the algorithms and their variants known to RL Zoo, with their configurations and search spaces, and the
    environments of the configurations to Gymnasium. Importing ``sb3_qam.zoo`` has done it.
    """
    for name, algorithm in ALGORITHMS.items():
        ALGOS[name] = algorithm
        HYPERPARAMS_SAMPLER[name] = partial(sample_params, VARIANTS[name].search)
        HYPERPARAMS_CONVERTER[name] = convert_params
    # The zoo looks for configurations in its own folder only, and has no other way to say where they are
    rl_zoo3.train.ExperimentManager = ExperimentManager  # type: ignore[misc]
    register_environments()


register()
