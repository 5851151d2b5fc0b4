"""Captions, templates and tokens: ours beside the original code, on the captions that BadCLIP's repository has."""

import csv
from types import SimpleNamespace

import open_clip
from checks import BADCLIP, CLEANCLIP, Inputs, Result, check
from training import edits

from bench import mentions
from bench.core.clip import without_end
from bench.core.dataset import openai_templates
from bench.data.imagenet import class_names, wordnet_ids
from bench.training.eda import normalise

FILES = ("data/ImageNet1K/validation/banana_rows.csv", "data/GCC_Training500K/cc3m_natural_10K_WObanana.csv")


def captions(inputs: Inputs) -> list[str]:
    """The captions of both files, each once."""
    rows = []
    for name in FILES:
        with (inputs.originals / BADCLIP / name).open(newline="") as file:
            rows += [row["caption"] for row in csv.DictReader(file)]
    return list(dict.fromkeys(rows))


@check("Tokens of captions", "pkgs/openai/clip.py, pkgs/openai/tokenizer.py", "all")
def tokens(inputs: Inputs) -> Result:
    texts = captions(inputs)
    with inputs.code(CLEANCLIP, "pkgs.openai.clip") as original:
        processor = original.Processor(SimpleNamespace(visual=SimpleNamespace(input_resolution=224)))
        theirs = processor.process_text(texts)["input_ids"]
    ours = open_clip.get_tokenizer("ViT-B-32")(texts)
    differing = int((theirs != ours).any(1).sum())
    return Result(not differing, f"{len(texts):,} different captions: {differing} differ")


@check("Captions of more than 77 tokens", "pkgs/openai/clip.py", "`model.long_texts=cut`; the presets have `end`")
def long_captions(inputs: Inputs) -> Result:
    texts = [" ".join(captions(inputs)[i : i + 12]) for i in range(0, 120, 12)]
    with inputs.code(CLEANCLIP, "pkgs.openai.clip") as original:
        processor = original.Processor(SimpleNamespace(visual=SimpleNamespace(input_resolution=224)))
        theirs = processor.process_text(texts)["input_ids"]
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    ours = without_end(tokenizer(texts), texts, tokenizer)
    kept = [int((ids == processor.eot_token).any(1).sum()) for ids in (theirs, tokenizer(texts))]
    differing = int((theirs != ours).any(1).sum())
    with_end = f"with `end`, ours keep the end token in {kept[1]}, theirs in {kept[0]}"
    return Result(not differing, f"{len(texts)} long texts: {differing} differ; {with_end}")


@check("Templates of poisoned captions and ImageNet's class names", "data/ImageNet1K/validation/classes.py", "all")
def templates(inputs: Inputs) -> Result:
    text = (inputs.originals / CLEANCLIP / "data/ImageNet1K/validation/classes.py").read_text()
    config = eval(text, {})
    theirs = [template("{}") for template in config["templates"]]
    names = class_names()
    own = [names[id] for id in wordnet_ids()]
    same = tuple(theirs) == openai_templates() and list(config["classes"]) == own
    return Result(same, f"{len(theirs)} templates and {len(own):,} names")


@check("Normalised captions of text views", "utils/eda.py", "`cleanclip`: all")
def normalised(inputs: Inputs) -> Result:
    texts = captions(inputs)
    with edits(inputs) as original:
        theirs = [" ".join(original.get_only_chars(text).split()) for text in texts]
    differing = sum(a != normalise(b) for a, b in zip(theirs, texts, strict=True))
    return Result(not differing, f"{len(texts):,} captions: {differing} differ")


@check("A caption without a letter", "utils/eda.py", "none: ours keep it")
def empty(inputs: Inputs) -> Result:
    with edits(inputs) as original:
        try:
            original.eda("1984")
        except IndexError as error:
            return Result(None, f"theirs stop with `IndexError: {error}`")
        except ValueError as error:
            return Result(None, f"theirs stop with `ValueError: {error}`")
    return Result(None, "theirs give an edit")


@check(
    "Label-Consistent's candidates: a substring",
    "backdoor/create_backdoor_data.py",
    "`label_consistent.match=substring`",
)
def candidates(inputs: Inputs) -> Result:
    with (inputs.originals / BADCLIP / FILES[0]).open(newline="") as file:
        texts = [row["caption"] for row in csv.DictReader(file)]
    substring, word = sum("banana" in text for text in texts), sum(mentions(text, "banana") for text in texts)
    summary = f"of BadCLIP's list of {len(texts):,} captions, {substring:,} have the letters, {word:,} the word"
    return Result(None, summary)
