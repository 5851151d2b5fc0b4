"""The settings that auditors share which look for the smallest mask: Neural Cleanse and DECREE."""

from bench.builtin_tasks.auditor import Auditor
from bench.core.settings import Field
from bench.detection.masked import Weighing


class MaskSearch(Auditor):
    """An auditor that looks for the smallest mask with which a trigger succeeds (`bench.detection.masked`)."""

    batch_size: int = Field(32, ge=2, description="images a step")
    cost: float = Field(1e-3, gt=0, description="weight of the mask's L1 norm at the start")
    patience: int = Field(5, ge=1, description="checks in a row before the weight changes")
    wanted: float = Field(
        0.99, gt=0, le=1, description="ASR, or of DECREE mean pairwise cosine, at which a trigger counts as successful"
    )

    def weighing(self, up: float, down: float, stop: int | None = None) -> Weighing:
        """How the weight follows success; the factors `up` and `down`, and `stop`, are the method's."""
        return Weighing(self.cost, up, down, self.patience, self.wanted, stop)
