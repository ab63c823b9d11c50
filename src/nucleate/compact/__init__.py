"""Make a pruned network really smaller and really faster."""

from __future__ import annotations
