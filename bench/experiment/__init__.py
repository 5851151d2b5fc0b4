"""What is run: settings, suites, and the data and models that they name."""
