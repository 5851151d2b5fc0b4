"""The stages of a matrix, a file each: what determines an artefact, how it is made, and what that costs."""

from bench.matrix.plan import Kind
from bench.matrix.stages import backdoor, defense, evaluation, trigger
from bench.matrix.stages.stage import Stage

STAGES: dict[Kind, Stage] = {
    "trigger": trigger.TriggerStage(),
    "backdoor": backdoor.BackdoorStage(),
    "defense": defense.DefenseStage(),
    "evaluation": evaluation.EvaluationStage(),
}

__all__ = ["STAGES", "Stage"]
