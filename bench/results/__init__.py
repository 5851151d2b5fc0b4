"""What a run leaves: artefacts with their cards, and the record of its cells."""
