"""Each look at the test set is counted; one that was killed counts once."""

from core.runs.evaluated import EVALUATED, evaluation_name, looks_told
from core.runs.run_record import Run
from core.runs.store import append_event


def note_killed_look(run: Run) -> None:
    """What is committed and not in the journal was committed by a process that was killed before it could say so."""
    name, told = evaluation_name(run), [name for name, _ in looks_told(run)]
    if name is not None and name not in told and (any(told) or not told):
        note_look(run, returned=False)


def note_look(run: Run, *, returned: bool = True) -> None:
    """Write the committed evaluation into the journal, named by its content."""
    count = len(run.record["split"]["test"])
    told = {"test_subjects": count, "evaluation": evaluation_name(run), "returned": returned}
    append_event(run, EVALUATED, told)
