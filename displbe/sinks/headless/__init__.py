"""The sink without a screen."""
