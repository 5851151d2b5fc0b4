"""Names that stand in results: rows of tables, a perturbation, and the columns that say where a number belongs."""

# The row of a table that shows the clean model under the same trigger.
CLEAN_MODEL = "clean_model"
# The row of backdoored models as they are.
UNDEFENDED = "none"
# The perturbation that is the cell's own trigger.
OWN_TRIGGER = "trigger"
# What tells one cell of a results folder from another.
CELL_COLUMNS = ["task", "model", "attack", "target", "defense", "dataset", "seed", "variant"]
