"""The command line, one module a command. torch is imported inside the commands, so that help comes at once."""

from nucleate.cli.main import COMMANDS as COMMANDS
from nucleate.cli.main import main as main
