"""CLIP models by name or file: the embedded one, open_clip's, a hub's, a folder's, a stranger's checkpoint."""

from bench.models.load import ModelSettings, known_models, load_model

__all__ = ["ModelSettings", "known_models", "load_model"]
