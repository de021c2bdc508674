"""Hypothesis without deadlines: a loaded machine is slow, not wrong."""

from hypothesis import settings
from logs import as_in_tests

settings.register_profile("displbe", deadline=None)
settings.load_profile("displbe")
as_in_tests()
