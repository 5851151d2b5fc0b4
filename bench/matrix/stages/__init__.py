"""The stages of a matrix, one file each: how an artefact is made, and what that costs."""

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
