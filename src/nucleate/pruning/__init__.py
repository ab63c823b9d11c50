"""Decide which weights go: scores, selection, schedules, masks; nothing here trains."""
