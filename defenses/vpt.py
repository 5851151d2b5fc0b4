"""VPT-deep: visual prompts tuned with cross-entropy alone (Jia et al., arXiv 2203.12119)."""

from bench import defense
from defenses.prompt_tuning import PromptTuning


@defense("vpt")
class VPT(PromptTuning):
    """RVPT without its feature-repelling loss, which is what the paper calls VPT.

    The original VPT puts prompts at every block, starts them uniform (`init: vpt`) and learns a linear head; here, as
    in the paper's baseline, blocks, head and recipe are RVPT's, so that the two differ in the loss alone.
    """
