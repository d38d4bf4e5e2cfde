"""The worker in plain words (Gherkin)."""
