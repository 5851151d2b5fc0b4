"""What is done with one checkpoint, perhaps a stranger's: it is opened, audited and purified; calibrations."""
