"""The subject's claims: sentence, source, experiment, criterion -> verdict."""

from nucleate.claims.registry import CLAIMS as CLAIMS
from nucleate.claims.trial import listing as listing
from nucleate.claims.trial import table as table
from nucleate.claims.trial import try_claims as try_claims
