"""The entry point: finds the command, turns a user's mistake into one line and exit code 2."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence

from nucleate.cli.audit import audit
from nucleate.cli.bias import bias
from nucleate.cli.capacity import capacity
from nucleate.cli.claims import claims
from nucleate.cli.collapse import collapse
from nucleate.cli.compare import compare
from nucleate.cli.connectivity import connectivity
from nucleate.cli.data import data
from nucleate.cli.descent import descent
from nucleate.cli.doctor import doctor
from nucleate.cli.lazy import lazy
from nucleate.cli.memorise import memorise
from nucleate.cli.probe import probe
from nucleate.cli.prune import prune
from nucleate.cli.prune_stability import prune_stability
from nucleate.cli.report import report
from nucleate.cli.runs import runs
from nucleate.cli.supermask import supermask
from nucleate.cli.sweep import sweep
from nucleate.cli.tickets import tickets

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "collapse": collapse,
    "prune": prune,
    "probe": probe,
    "compare": compare,
    "descent": descent,
    "tickets": tickets,
    "capacity": capacity,
    "connectivity": connectivity,
    "memorise": memorise,
    "lazy": lazy,
    "bias": bias,
    "audit": audit,
    "supermask": supermask,
    "prune-stability": prune_stability,
    "claims": claims,
    "report": report,
    "sweep": sweep,
    "runs": runs,
    "data": data,
    "doctor": doctor,
}
"""One module of this package a command; its docstring is its line in the help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake gives one line on stderr and exit code 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return 0 if args else 2
    if args[0] == "--version":
        from importlib.metadata import version

        print(version("nucleate"))
        return 0
    try:
        if args[0] not in COMMANDS:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
            raise ValueError(f"no command is named {args[0]!r}; {hint}")
        return COMMANDS[args[0]](args[1:])
    except KeyboardInterrupt:
        print("nucleate: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        print("nucleate: " + " ".join(str(error).split()), file=sys.stderr)
        return 2


def _help() -> str:
    lines = [
        "Measure how a network's classes collapse into a simplex, find the sparse network inside it,",
        "and ship that one.",
        "",
        "usage: nucleate COMMAND [ARGUMENTS]   (nucleate COMMAND --help for its options)",
        "",
    ]
    lines += [f"  {name:15s} {command.__doc__}" for name, command in COMMANDS.items()]
    return "\n".join(lines)
