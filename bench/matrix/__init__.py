"""The matrix: every attack against every defense, each artefact made once."""
