"""The headless sink: outputs without screens."""
