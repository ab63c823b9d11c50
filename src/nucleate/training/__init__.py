"""The loop, a generator that hands over after every epoch; and many small networks in one."""

from nucleate.training.loop import Epoch as Epoch
from nucleate.training.loop import Training as Training
from nucleate.training.plan import plan_stacks as plan_stacks
from nucleate.training.stacked import Replica as Replica
from nucleate.training.stacked import Stack as Stack
from nucleate.training.stacked import StackEpoch as StackEpoch
