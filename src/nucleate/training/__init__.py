"""The loop: a generator that hands over after every epoch."""

from nucleate.training.loop import Epoch as Epoch
from nucleate.training.loop import Training as Training
