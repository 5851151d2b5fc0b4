"""CLIP models by name or file: the embedded ones, open_clip's, Hugging Face's, a folder, a checkpoint."""

from bench.models.load import (
    ModelSettings,
    configuration,
    embedded_weights,
    known_models,
    load_backdoored,
    load_model,
    pretrained_folder,
)
from bench.models.probe import Probe, probe
from bench.models.sizes import has_vision_transformer, sizes, weights_at_hand

__all__ = [
    "ModelSettings",
    "Probe",
    "configuration",
    "embedded_weights",
    "has_vision_transformer",
    "known_models",
    "load_backdoored",
    "load_model",
    "pretrained_folder",
    "probe",
    "sizes",
    "weights_at_hand",
]
