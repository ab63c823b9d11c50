"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# A busy machine must not turn a slow example into a failure. Examples are the same at every run, so that a failure says
# something of what was changed; `--hypothesis-profile=default` looks for new ones.
settings.register_profile("nucleate", deadline=None, derandomize=True)
settings.load_profile("nucleate")
