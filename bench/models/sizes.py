"""The size of a model from its configuration; no weights are needed."""

from huggingface_hub import try_to_load_from_cache

from bench.core.cost import Sizes
from bench.models.load import HUB, RANDOM, WEIGHTS_FILES, ModelSettings, configuration, embedded_weights


def sizes(settings: ModelSettings) -> Sizes | None:
    """The sizes of a model; None if its image tower is no ViT of open_clip, or its configuration would be downloaded.

    Norms and biases, about 1 % of the parameters, are not counted.

    Raises:
        BenchError: an unknown name.
    """
    if not has_vision_transformer(settings):
        return None
    config = configuration(settings)
    model = config["model_cfg"]
    vision, text = model["vision_cfg"], model["text_cfg"]
    size, patch, width = config["preprocess_cfg"]["size"], vision["patch_size"], vision["width"]
    tokens = (size // patch) ** 2 + 1
    tower = vision["layers"] * 12 * width**2 + width * (3 * patch**2 + tokens + model["embed_dim"])
    language = text["layers"] * 12 * text["width"] ** 2 + text["width"] * (text["vocab_size"] + model["embed_dim"])
    return Sizes(vision["layers"], width, tokens, size, model["embed_dim"], tower + language)


def has_vision_transformer(settings: ModelSettings) -> bool | None:
    """Whether a model's image tower is a ViT of open_clip; None if its configuration would be downloaded.

    Raises:
        BenchError: an unknown name.
    """
    if settings.name.startswith(HUB):
        return None
    vision = configuration(settings)["model_cfg"]["vision_cfg"]
    return isinstance(vision.get("layers"), int) and "timm_model_name" not in vision


def weights_at_hand(settings: ModelSettings) -> bool:
    """Whether a model can be loaded without a download."""
    if settings.checkpoint or settings.pretrained == RANDOM:
        return True
    if settings.embedded:
        return embedded_weights(settings.name) is not None
    repository = settings.name.removeprefix(HUB) if settings.name.startswith(HUB) else None
    if settings.architecture is not None:
        # Imported late: it takes longer to import than torch.
        import open_clip

        tag = open_clip.get_pretrained_cfg(settings.architecture, settings.pretrained or "")
        repository = tag.get("hf_hub", "").strip("/")
    if repository is None:
        return True
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in WEIGHTS_FILES if repository)
