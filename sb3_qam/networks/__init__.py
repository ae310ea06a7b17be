"""The networks of the policies, and features extractors for images."""

from sb3_qam.networks.actors import DeterministicActor, EditPolicy, OneStepFlow, VelocityField
from sb3_qam.networks.critics import CriticEnsemble
from sb3_qam.networks.image_extractors import ImageCombinedExtractor, ImpalaCNN

__all__ = [
    "CriticEnsemble",
    "DeterministicActor",
    "EditPolicy",
    "ImageCombinedExtractor",
    "ImpalaCNN",
    "OneStepFlow",
    "VelocityField",
]
