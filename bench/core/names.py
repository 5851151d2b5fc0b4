"""Names used in results: special rows of tables, a perturbation, and the columns that identify a cell."""

# The row of a table that shows the clean model under the same trigger.
CLEAN_MODEL = "clean_model"
# The row of backdoored models as they are.
UNDEFENDED = "none"
# The perturbation that is the cell's own trigger.
OWN_TRIGGER = "trigger"
# The columns that identify a cell of a results folder.
CELL_COLUMNS = ["task", "model", "attack", "target", "defense", "dataset", "seed", "variant"]


def comma_separated(text: str) -> tuple[str, ...]:
    """The names in an option's value.

    >>> comma_separated("badnet, wanet,")
    ('badnet', 'wanet')
    """
    return tuple(name for part in text.split(",") if (name := part.strip()))
