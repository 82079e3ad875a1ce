"""Zip and tar archives of strangers, read member by member and never unpacked to disk."""

from __future__ import annotations

import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from diffgen.errors import DataError
from diffgen.readers.limits import MAX_MEMBER_BYTES, check_expansion, check_name
from diffgen.readers.pread import PreadFile, PreadStream

MAX_TAR_BYTES = 1 << 30
"""Most bytes that are unpacked of a .tar.gz while its members are looked for; CIFAR-10 has
0.2 GB."""

LOCAL_HEADER_BYTES = 30
"""Bytes in front of the name of a member; the last four count those of the name and after it."""

DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    OverflowError,
    MemoryError,
)
"""What the standard library raises on damaged archives."""


@contextmanager
def damage_as_data_error(where: str) -> Iterator[None]:
    """Turn what a damaged archive makes the standard library raise into ``DataError``."""
    try:
        yield
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"{where}: damaged archive: {error or type(error).__name__}") from error


class SafeZip:
    """A zip archive whose members have been checked before the first is read.

    Refused: names that leave the archive, links, encryption, names that occur twice, methods
    other than stored and deflated, members that overlap or declare far more than is stored.
    """

    def __init__(self, path: str) -> None:
        """Open and check the archive.

        Args:
            path: The .zip.

        Raises:
            DataError: Damaged or refused, with the member.
        """
        self.path = path
        self._file = PreadFile(path)
        with damage_as_data_error(path):
            self._zip = zipfile.ZipFile(io.BufferedReader(PreadStream(self._file)))
            self._members = {}
            for info in self._zip.infolist():
                self._check(info)
                self._members[info.filename] = info
        infos = self._members.values()
        packed = sum(info.compress_size for info in infos)
        if packed > self._file.size:
            raise DataError(f"{path}: decompression bomb: its members overlap")
        check_expansion(path, sum(info.file_size for info in infos), packed)

    def _check(self, info: zipfile.ZipInfo) -> None:
        where = f"{self.path}: member {info.filename!r}"
        # orig_filename still has what zipfile cuts off behind a NUL.
        check_name(self.path, info.orig_filename)
        check_name(self.path, info.filename)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{where} must be a file, got a symbolic link")
        if info.flag_bits & 1:
            raise DataError(f"{where} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{where} must be stored or deflated, got method {info.compress_type}")
        if info.filename in self._members:
            raise DataError(f"{where} occurs twice")
        if info.compress_size < 0 or info.file_size < 0:
            raise DataError(f"{where} has a negative size")

    def names(self) -> list[str]:
        """Names of the files, in the order of the archive."""
        return [name for name, info in self._members.items() if not info.is_dir()]

    def packed_bytes(self) -> int:
        """Bytes of all members as they are stored."""
        return sum(info.compress_size for info in self._members.values())

    def size(self, name: str) -> int:
        """Declared size of a member, unpacked, in bytes."""
        return self._members[name].file_size

    @property
    def file(self) -> PreadFile:
        """The archive as a file; closing the archive closes it."""
        return self._file

    def stored_at(self, name: str) -> int | None:
        """Byte of the file where a member lies as it is; None when it is deflated.

        The checksum is not compared by whoever reads there: see ``crc``.
        """
        info = self._members[name]
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            return None
        # Opened first: zipfile compares the member's own header with the directory.
        with self.open(name):
            header = self._file.read(info.header_offset, LOCAL_HEADER_BYTES)
        name_bytes, extra_bytes = struct.unpack_from("<HH", header, LOCAL_HEADER_BYTES - 4)
        return info.header_offset + LOCAL_HEADER_BYTES + int(name_bytes) + int(extra_bytes)

    def crc(self, name: str) -> int:
        """Checksum that a member declares."""
        return self._members[name].CRC

    def check(self, names: Sequence[str] = ()) -> None:
        """``DataError`` when the archive is not any more the file that was opened.

        Args:
            names: Members that are meant; any of them is the whole archive.
        """
        self._file.check()

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open a member as a stream; damage in it is a ``DataError``."""
        with damage_as_data_error(f"{self.path}: member {name!r}"):  # noqa: SIM117
            with self._zip.open(self._members[name]) as stream:
                yield stream

    def read(self, name: str, limit: int = MAX_MEMBER_BYTES) -> bytes:
        """The bytes of a member: as many as it declares, and at most ``limit``."""
        where = f"{self.path}: member {name!r}"
        declared = self.size(name)
        if declared > limit:
            raise DataError(f"{where} must have at most {limit} bytes, got {declared}")
        with self.open(name) as stream:
            # One byte more than declared, so that a longer member reaches its checksum test.
            content = stream.read(declared + 1)
        if len(content) != declared:
            raise DataError(f"{where} declares {declared} bytes, got {len(content)}")
        return content

    def close(self) -> None:
        """Close the archive."""
        self._zip.close()
        self._file.close()


class Crc32:
    """The checksum of zip archives, as a running digest."""

    name = "crc32"

    def __init__(self, content: bytes = b"") -> None:
        """Start, over some bytes."""
        self._value = zlib.crc32(content)

    def update(self, content: bytes | memoryview, /) -> None:
        """Take in more bytes."""
        self._value = zlib.crc32(content, self._value)

    def hexdigest(self) -> str:
        """The value, as eight hexadecimal digits."""
        return f"{self._value:08x}"


class _Limited(io.RawIOBase):
    """A stream that refuses to give more than a number of bytes."""

    def __init__(self, stream: io.BufferedIOBase, limit: int, path: str) -> None:
        self._stream = stream
        self._left = limit
        self._path = path

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > self._left:
            size = self._left + 1
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise DataError(f"{self._path}: decompression bomb: more than {MAX_TAR_BYTES} bytes")
        return content


def read_tar(path: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Members of a .tar.gz or .tar, in the order of the archive, without unpacking to disk.

    Args:
        path: The archive.
        wanted: Whether to read the member of this name.

    Yields:
        Name and content of each member that is wanted.

    Raises:
        DataError: Damaged; a name that leaves the archive; a link or device; a member or an
            archive that unpacks to too much.
    """
    with PreadFile(path) as file, damage_as_data_error(path):
        raw = io.BufferedReader(PreadStream(file))
        packed = raw.peek(2)[:2] == b"\x1f\x8b"
        unpacked = gzip.GzipFile(fileobj=raw) if packed else raw
        limited = _Limited(unpacked, MAX_TAR_BYTES, path)
        with tarfile.open(fileobj=limited, mode="r|") as tar:
            for member in tar:
                where = f"{path}: member {member.name!r}"
                check_name(path, member.name)
                if not (member.isreg() or member.isdir()) or member.issparse():
                    raise DataError(f"{where} must be a plain file or folder")
                if not member.isreg() or not wanted(member.name):
                    continue
                if member.size > MAX_MEMBER_BYTES:
                    raise DataError(
                        f"{where} must have at most {MAX_MEMBER_BYTES} bytes, got {member.size}"
                    )
                stream = tar.extractfile(member)
                content = stream.read() if stream is not None else b""
                if len(content) != member.size:
                    raise DataError(f"{where} is truncated: {len(content)} of {member.size} bytes")
                yield member.name, content
