"""What can go wrong at the border, by exit code: bad input 2, environment 3, integrity 4, interrupted 5.

A message says what, what was given, what is allowed, what to do.
"""

from collections.abc import Mapping


class BadInput(ValueError):
    """The user gave something that cannot be used. Exit code 2."""


class EnvironmentProblem(RuntimeError):
    """Disk, memory or permission stands in the way. Exit code 3."""


class IntegrityError(RuntimeError):
    """A file is not what its manifest says. Exit code 4."""


class Interrupted(RuntimeError):
    """Stopped on request; the same command resumes. Exit code 5."""


FORESEEN = (BadInput, EnvironmentProblem, IntegrityError)
"""What may stand in the way of one piece of work and leaves the next ones possible; the gravest last."""


def together(problems: Mapping[str, BadInput | EnvironmentProblem | IntegrityError], others: str) -> Exception:
    """One error for several pieces of work, of the gravest kind among them. `others` says what became of the rest."""
    gravest = max(problems.values(), key=lambda problem: [isinstance(problem, kind) for kind in FORESEEN].index(True))
    told = "\n".join(f"{name}: {problem}" for name, problem in problems.items())
    return type(gravest)(f"{told}\n{others}" if others else told)
