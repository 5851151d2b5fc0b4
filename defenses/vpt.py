"""VPT-deep: visual prompts tuned with cross-entropy alone (Jia et al., arXiv 2203.12119)."""

from bench import defense
from defenses.prompt_tuning import PromptTuning


@defense("vpt")
class VPT(PromptTuning):
    """RVPT without its feature-repelling loss, which is what the paper calls VPT.

    The original VPT has prompts at every block, uniform initial values (`init: vpt`) and a trained linear head. Here,
    as in the paper's baseline, blocks, classifier and recipe are RVPT's, so that the two differ only in the loss.
    """
