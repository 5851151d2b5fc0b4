"""Tables of papers, filled with the numbers of a results folder beside the published ones."""
