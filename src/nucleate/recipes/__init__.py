"""Named experiments: functions that return a spec."""
