"""The report of the real study."""
from pathlib import Path
from core.store import Run
def write_report(path: Path, encoder: Run, runs: dict[tuple[str, str], Run]) -> None:
    print("report")
