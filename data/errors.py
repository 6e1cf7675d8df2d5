"""What can go wrong at the border, by exit code: bad input 2, environment 3, integrity 4, interrupted 5.

A message says what, what was given, what is allowed, what to do.
"""


class BadInput(ValueError):
    """The user gave something that cannot be used. Exit code 2."""


class EnvironmentProblem(RuntimeError):
    """Disk, memory or permission stands in the way. Exit code 3."""


class IntegrityError(RuntimeError):
    """A file is not what its manifest says. Exit code 4."""


class Interrupted(RuntimeError):
    """Stopped on request; the same command resumes. Exit code 5."""
