"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# A busy machine must not turn a slow example into a failure.
settings.register_profile("nucleate", deadline=None)
settings.load_profile("nucleate")
