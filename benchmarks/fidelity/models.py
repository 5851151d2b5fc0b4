"""Towers, parameters and zero-shot evaluation: ours beside the original code, with the same random weights."""

import tempfile
import warnings
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from checks import CLEANCLIP, Inputs, Result, check
from texts import captions
from torch import Tensor
from triggers import as_images

from bench import Clip
from bench.core.dataset import openai_templates
from bench.core.randomness import seeded
from bench.core.victim import Victim
from bench.data.imagenet import class_names, wordnet_ids
from bench.models import ModelSettings, load_model
from bench.models.checkpoint import fill, read_checkpoint

# ViT-B/32: embedding, image, blocks, width, patch; context, vocabulary, width, heads, blocks of the text tower.
B_32 = (512, 224, 12, 768, 32, 77, 49408, 512, 8, 12)
# A small one, for thousands of texts, and ours of the same shape.
SMALL = (64, 224, 2, 128, 32, 77, 49408, 64, 1, 2)
SMALL_CONFIG = {
    "model_cfg": {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": 2, "width": 128, "head_width": 64, "patch_size": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]},
}


def stored(inputs: Inputs, shape: tuple[int, ...], file: Path) -> Any:
    """The original's CLIP of a shape with random weights; also written to a file, as its training does."""
    with inputs.code(CLEANCLIP, "pkgs.openai.model") as original, seeded(0):
        model = original.CLIP(*shape).eval()
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, file)
    return model


def both(inputs: Inputs, folder: Path) -> tuple[Any, Clip]:
    """The original's ViT-B/32 with random weights, and ours with the same, read from a file of the original's form."""
    file = folder / "epoch_1.pt"
    theirs = stored(inputs, B_32, file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = load_model(ModelSettings(name="ViT-B-32-quickgelu", checkpoint=file), "cpu")
    return theirs, ours


@check(
    "Embeddings of ViT-B/32, image and text tower",
    "pkgs/openai/model.py",
    "`--checkpoint FILE`, `--model ViT-B-32-quickgelu`",
)
@torch.no_grad()
def towers(inputs: Inputs) -> Result:
    images = as_images(inputs.pictures()[:8]).load(torch.arange(8))
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = both(inputs, Path(folder))
    tokens = ours.tokenize(captions(inputs)[:8])
    seen = theirs(tokens, None, ours.normalise(images))
    apart = [seen.image_embeds - ours.encode_image(images), seen.text_embeds - ours.encode_text(tokens)]
    image, text = (float(a.abs().max()) for a in apart)
    return Result(max(image, text) < 1e-5, f"8 photos: at most {image:.1g} apart; 8 captions: {text:.1g}")


@check("Which numbers get weight decay", "src/main.py", "all")
def decayed(inputs: Inputs) -> Result:
    from bench.training.fine_tuning import FineTuning, parameter_groups

    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = both(inputs, Path(folder))
    spared = ("bn", "ln", "bias", "logit_scale")
    original = sum(p.numel() for name, p in theirs.named_parameters() if not any(key in name for key in spared))
    own = sum(p.numel() for p in parameter_groups(ours, FineTuning())[0]["params"])
    total = sum(p.numel() for p in ours.model.parameters())
    return Result(own == original, f"theirs {original:,} of {total:,}, ours {own:,}")


@check(
    "Zero-shot predictions with 80 templates",
    "src/evaluate.py, data/ImageNet1K/validation/classes.py",
    "`imagenet.prompts=openai80`; the presets have the paper's single prompt",
)
@torch.no_grad()
def zero_shot(inputs: Inputs) -> Result:
    images = as_images(inputs.pictures())
    index = torch.arange(len(images))
    names = class_names()
    classes = [names[id] for id in wordnet_ids()[::20]]
    file = inputs.originals / CLEANCLIP / "data/ImageNet1K/validation/classes.py"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs, ours = stored(inputs, SMALL, folder / "small.pt"), Clip.from_config(SMALL_CONFIG)
        fill(ours.model, read_checkpoint(folder / "small.pt"), "the small CLIP")
        victim = Victim(ours)
        texts = victim.class_embeddings(classes, openai_templates())
        predicted = victim.predict(victim.encode(images.load(index)), texts)
        (folder / "classes.py").write_text(f"dict(eval(open({str(file)!r}).read()), classes={classes!r})")
        options = SimpleNamespace(distributed=False, asr=False, device="cpu", eval_test_data_dir=name, name="x")
        # Our predictions are its labels: it must call every one of them right.
        batches = [(ours.normalise(images.load(index)), predicted)]
        with inputs.code(CLEANCLIP, "pkgs.openai.clip") as clip, inputs.code(CLEANCLIP, "src.evaluate") as original:
            processor = clip.Processor(SimpleNamespace(visual=SimpleNamespace(input_resolution=224)))
            # It asks for the ten best classes, and writes a table where it runs.
            topk = Tensor.topk
            with chdir(folder), mock.patch.object(Tensor, "topk", lambda t, k, dim: topk(t, min(k, t.shape[dim]), dim)):
                agreed = original.get_zeroshot_metrics(theirs, processor, batches, options)["zeroshot_top1"]
    kinds = len(predicted.unique())
    summary = f"random weights, {len(images)} photos, {kinds} of {len(classes)} classes predicted: {agreed:.0%} alike"
    return Result(agreed == 1 and kinds > 1, summary)
