"""CLIP models by name or file: the embedded one, open_clip's, Hugging Face's, a folder, a checkpoint."""

from bench.models.load import ModelSettings, known_models, load_backdoored, load_model
from bench.models.probe import Probe, probe
from bench.models.sizes import sizes, weights_at_hand

__all__ = [
    "ModelSettings",
    "Probe",
    "known_models",
    "load_backdoored",
    "load_model",
    "probe",
    "sizes",
    "weights_at_hand",
]
