"""The journal of a run: what was measured, on disk as soon as it is, so that a run can go on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffgen
from benchmarks.measure import Entry, Measurement

Settings = Mapping[str, Any]

_KEPT = ("data", "peak_mib", "error", "failure", "stopped", "fault")


def source_digest() -> str:
    """Digest of the diffgen that is imported, compiled core included: another is another run."""
    digest = hashlib.sha256()
    folder = Path(diffgen.__file__).parent
    for path in sorted(p for p in folder.rglob("*") if p.suffix in {".py", ".so", ".pyd"}):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


class Journal:
    """Measurements of one run, a line of JSON each.

    Ratios hold within a group of cases, whose rounds are taken in turn. So a group is written when
    it is done, and one of which entries are missing is measured again.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        """Reads what a run with the same settings left unfinished, or starts anew.

        Args:
            path: The file; it and its folder are made.
            settings: What must be equal for the numbers to belong together.
        """
        self.path = path
        self._found: dict[tuple[str, str], dict[str, Any]] = {}
        lines = _lines(path)
        wanted = json.loads(json.dumps(dict(settings)))
        if lines and lines[0] == {"settings": wanted} and lines[-1] != {"finished": True}:
            self._found = {(line["case"], line["contender"]): line for line in lines[1:]}
            path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))  # no torn last line
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{json.dumps({'settings': wanted})}\n")

    def __len__(self) -> int:
        """Rows that are there."""
        return len(self._found)

    def group(self, entries: Sequence[Entry]) -> list[Measurement] | None:
        """The measurements of a group, or None where any is missing."""
        lines = [self._found.get(entry.key) for entry in entries]
        measurements = []
        for entry, line in zip(entries, lines, strict=True):
            if line is None:
                return None
            kept = {name: line[name] for name in _KEPT}
            measurements.append(Measurement(entry, seconds=tuple(line["seconds"]), **kept))
        return measurements

    def add(self, measurements: Iterable[Measurement]) -> None:
        """Writes a group, through to the disk."""
        with self.path.open("a") as file:
            for found in measurements:
                case, contender = found.entry.key
                line = {"case": case, "contender": contender, "seconds": list(found.seconds)}
                line |= {name: getattr(found, name) for name in _KEPT}
                file.write(f"{json.dumps(line)}\n")
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Marks the run as done: the next one starts anew."""
        with self.path.open("a") as file:
            file.write(f"{json.dumps({'finished': True})}\n")


def _lines(path: Path) -> list[Any]:
    """The lines of a journal; what an interruption tore off at the end is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
