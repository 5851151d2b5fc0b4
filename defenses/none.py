"""No defense: the undefended row that every other row is compared with."""

from bench import CleanData, Defense, Victim, defense


@defense("none")
class NoDefense(Defense):
    """The backdoored model, unchanged."""

    def fit(self, victim: Victim, data: CleanData) -> Victim:
        return victim
