"""The journal of a packed set that is being written: what it is made of, and what is done.

``pack.json`` lies in the folder from the first moment until ``meta.json`` describes the whole. It
holds ``job``, all that the rows of the set and their cuts depend on; ``made``, what ``meta.json``
will say of the making; and ``shards``, the finished ones as ``meta.json`` will have them, each with
the SHA-256 of its part of the norms, which wait in ``norms.part``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffgen.readers.durable import PART, sync_folder, written_whole
from diffgen.readers.packed import FORMAT, META_FILE, VERSION
from diffgen.readers.source import byte_view

JOURNAL_FILE = "pack.json"
NORMS_PART = "norms" + PART

_HASHED_AT_ONCE = 1 << 20

_FIELDS = (("file", str), ("rows", int), ("bytes", int), ("sha256", str), ("norms_sha256", str))
"""What the journal holds of a shard."""


class Journal:
    """The journal in a folder, new or found there."""

    def __init__(
        self,
        folder: str,
        job: Mapping[str, Any],
        made: Mapping[str, Any] | None,
        resumable: bool,
    ) -> None:
        """Start a journal in an empty folder, or go on with that of the same job.

        Args:
            folder: The folder, which exists.
            job: What the rows and their cuts depend on, as JSON has it; under ``"source"`` what
                stands for the contents of the source.
            made: How the set is made; that of the first call stays.
            resumable: Whether ``job`` tells the source from others, so that a later call can go on.

        Raises:
            FileExistsError: The folder holds something else.
            ValueError: It holds the unfinished pack of another source, or of other settings.
        """
        self._folder = folder
        self._job = {**json.loads(json.dumps(job)), "format": FORMAT, "version": VERSION}
        self._resumable = resumable
        self.made = made
        self.shards: list[dict[str, Any]] = []
        self.norms = torch.empty(0, dtype=torch.int64)
        if os.path.exists(self._place(JOURNAL_FILE)):
            self._go_on()
        else:
            self._start()

    @property
    def rows(self) -> int:
        """Rows of the finished shards."""
        return sum(shard["rows"] for shard in self.shards)

    @property
    def complete(self) -> bool:
        """Whether the set is described already, and only the journal is still to be removed."""
        return os.path.exists(self._place(META_FILE))

    def add(self, shard: Mapping[str, Any], norms: Tensor) -> None:
        """Record a shard that is on the disk.

        Args:
            shard: Its entry of ``meta.json``.
            norms: Of its rows, ``(n,)`` int64.
        """
        with open(self._place(NORMS_PART), "ab") as stream:
            # Behind what the journal knows may be norms of a shard that was not recorded.
            stream.truncate(8 * self.rows)
            stream.write(byte_view(norms))
            stream.flush()
            os.fsync(stream.fileno())
        shards = [*self.shards, {**shard, "norms_sha256": _digest(norms)}]
        self._write(shards)
        self.shards, self.norms = shards, torch.cat([self.norms, norms])

    def entries(self) -> list[dict[str, Any]]:
        """The finished shards, as ``meta.json`` has them."""
        names = ("file", "rows", "sha256")
        return [{name: shard[name] for name in names} for shard in self.shards]

    def remove(self) -> None:
        """Take the journal away: the set is whole."""
        for name in (NORMS_PART, JOURNAL_FILE):
            with contextlib.suppress(FileNotFoundError):
                os.remove(self._place(name))
        sync_folder(self._folder)

    def _place(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _start(self) -> None:
        # A call that was killed before its journal had a name has left the part of it.
        if set(os.listdir(self._folder)) - {JOURNAL_FILE + PART}:
            raise FileExistsError(f"path must be a new or empty folder, got {self._folder}")
        self._write([])

    def _write(self, shards: list[dict[str, Any]]) -> None:
        record = {
            "resumable": self._resumable,
            "job": self._job,
            "made": self.made,
            "shards": shards,
        }
        with written_whole(self._place(JOURNAL_FILE)) as stream:
            stream.write((json.dumps(record, indent=1) + "\n").encode())

    def _go_on(self) -> None:
        found = self._read()
        theirs = found["job"]
        if not self._resumable or not found["resumable"]:
            raise FileExistsError(
                f"path must be a new or empty folder, got {self._folder} with an unfinished pack "
                "that cannot be continued: remove it to start again"
            )
        for name in {**self._job, **theirs}:
            if self._job.get(name) != theirs.get(name):
                self._refuse_other(name, theirs.get(name), self._job.get(name))
        self.made = found["made"]
        self.shards = found["shards"]
        if not self.complete:
            self._check_shards()
            self.norms = self._read_norms()

    def _read(self) -> dict[str, Any]:
        where = self._place(JOURNAL_FILE)
        try:
            with open(where, encoding="utf-8") as stream:
                found = json.load(stream)
            for shard in found["shards"]:
                for name, kind in _FIELDS:
                    if type(shard[name]) is not kind:
                        raise ValueError(f"{name} of a shard must be {kind.__name__}")
            if not isinstance(found["job"], dict) or type(found["resumable"]) is not bool:
                raise ValueError("job and resumable must be an object and a truth value")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{where}: malformed: {type(error).__name__}: {error}: remove the folder to start "
                "again"
            ) from error
        return dict(found)

    def _check_shards(self) -> None:
        """All shards have their sizes, and the last its SHA-256.

        Every shard was on the disk before the journal named it, so that only the last can have
        been under way when something broke; reading the set checks them all.
        """
        for shard in self.shards:
            place = self._place(shard["file"])
            size = os.path.getsize(place) if os.path.isfile(place) else 0
            if size != shard["bytes"]:
                self._refuse(f"{shard['file']} must have {shard['bytes']} bytes, got {size}")
        if self.shards:
            last = self.shards[-1]
            digest = hashlib.sha256()
            with open(self._place(last["file"]), "rb") as stream:
                while content := stream.read(_HASHED_AT_ONCE):
                    digest.update(content)
            if digest.hexdigest() != last["sha256"]:
                self._refuse(f"sha256 of {last['file']} must be {last['sha256']}")

    def _read_norms(self) -> Tensor:
        content = b""
        if os.path.isfile(self._place(NORMS_PART)):
            with open(self._place(NORMS_PART), "rb") as stream:
                content = stream.read(8 * self.rows)
        if len(content) != 8 * self.rows:
            self._refuse(f"{NORMS_PART} must have {8 * self.rows} bytes, got {len(content)}")
        norms = torch.from_numpy(np.frombuffer(content, np.int64).copy())
        first = 0
        for shard in self.shards:
            part = norms[first : first + shard["rows"]]
            first += shard["rows"]
            if _digest(part) != shard["norms_sha256"]:
                self._refuse(f"{NORMS_PART} must hold the norms of {shard['file']}")
        return norms

    def _refuse_other(self, name: str, theirs: Any, ours: Any) -> None:
        what = f"of {name} {theirs!r}, got {ours!r}"
        if name == "source":
            what = "of another source, or of this one before it changed"
        raise ValueError(
            f"{self._folder} holds an unfinished pack {what}: continue it with the source and the "
            "settings it was begun with, or remove the folder to start again"
        )

    def _refuse(self, what: str) -> None:
        raise ValueError(f"{self._folder}: {what}: remove the folder to start again")


def _digest(norms: Tensor) -> str:
    return hashlib.sha256(byte_view(norms)).hexdigest()


@contextlib.contextmanager
def alone(folder: str) -> Iterator[None]:
    """Hold a folder against other processes that pack into it.

    Raises:
        FileExistsError: Another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileExistsError(f"another process is packing into {folder}") from error
        except OSError:
            # Some network file systems have no locks; packing alone there is the user's care.
            pass
        yield
    finally:
        os.close(descriptor)
