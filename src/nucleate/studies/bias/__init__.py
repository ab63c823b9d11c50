"""Bias: which solution gradient descent picks where many fit."""

from nucleate.studies.bias.study import run as run
from nucleate.studies.bias.study import size as size
