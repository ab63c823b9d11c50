"""Named experiments, one module a study: functions that return a spec, whose fields the command line overrides."""
