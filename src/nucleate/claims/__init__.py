"""The subject's claims: sentence, source, experiment, criterion -> verdict."""
