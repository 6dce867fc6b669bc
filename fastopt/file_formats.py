"""Files of one document, as JSON, and named arrays: NumPy's .npz and safetensors, without a copy of the arrays.

Both are written here, byte by byte: arrays go from their memory to the file, and from the file, mapped into
memory, to where a load puts them. (NumPy's and safetensors' own functions return new arrays, so that a load would
need the memory of a second state.) Any program that reads these formats reads the files. Every byte has a
checksum, and a file whose checksums do not fit is refused; nothing in a file is executed.
"""

from __future__ import annotations

import ast
import errno
import fcntl
import io
import json
import math
import mmap
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from fastopt.arrays import Array
from fastopt.storage import storage_dtype

NO_CHECKPOINT = "this is no checkpoint of fastopt, or it is damaged; pass one that fastopt.save wrote"

CHUNK = 1 << 20
"""Bytes that are read or written at once. In between, signals are handled."""

DOCUMENT = "fastopt.json"
"""The member of an .npz file, besides the arrays."""

Contents: TypeAlias = tuple[str, dict[str, Array]]
"""The document, and the arrays, which are read-only views of the file."""

# -- To replace a file as a whole ------------------------------------------------------------------


class Output:
    """A new file, which takes all that is written or raises: what zipfile needs of one.

    descriptor: None before it is open, and once it is closed. Bytes that an interrupted zipfile still writes then are
    lost, as they should be: the number may be that of another file by now.
    """

    def __init__(self) -> None:
        self.descriptor: int | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data)
        size = view.nbytes
        if size:
            view = view.cast("B")
        while view.nbytes and self.descriptor is not None:
            view = view[os.write(self.descriptor, view[:CHUNK]) :]
        return size

    def tell(self) -> int:
        return self.seek(0, os.SEEK_CUR)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return 0 if self.descriptor is None else os.lseek(self.descriptor, offset, whence)

    def flush(self) -> None:
        pass


@contextmanager
def replaced(path: str) -> Iterator[Output]:
    """A file that is written in the block takes the place of the old one at its end: at once, or on an error not at all.

    It is written to a file beside it and flushed to the disk before it gets its name. A process that is killed
    leaves that other file behind; the next one that saves to the same path removes it.
    """
    path = os.path.realpath(path)
    mode = None
    with suppress(FileNotFoundError):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f"{path}: it is no regular file; choose another name")
    folder, name = os.path.split(path)
    start, end = f".{name[:100]}.", ".saving"
    _remove_left_behind(folder, start, end)
    # An interrupt may come between any two operations: so the name is known before there is a file, and the file is
    # an object, which closes itself wherever it is lost.
    file, temporary, output = None, "", Output()
    try:
        while file is None:
            temporary = os.path.join(folder, f"{start}{os.urandom(8).hex()}{end}")
            file = _new_file(temporary)
        output.descriptor = file.fileno()
        yield output
        if mode is not None:
            os.fchmod(file.fileno(), stat.S_IMODE(mode))
        os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    finally:
        output.descriptor = None
        if file is not None:
            file.close()
    _flush_folder(folder)


def _new_file(path: str) -> io.FileIO | None:
    """Makes a file and locks it until it is closed: the lock tells other processes that it is being written.

    Returns None if another process has taken it for one that was left behind, and removes it; then take another name.
    """
    file = io.FileIO(path, "x+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # a file system without locks
        return file
    if os.fstat(file.fileno()).st_nlink:
        return file
    file.close()
    return None


def _remove_left_behind(folder: str, start: str, end: str) -> None:
    """Removes the files of processes that were killed while they wrote: nobody has them locked."""
    for name in os.listdir(folder):
        if not (name.startswith(start) and name.endswith(end)):
            continue
        path = os.path.join(folder, name)
        with suppress(OSError):  # it is locked; or it is another user's; or it is gone
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(descriptor)


def _flush_folder(folder: str) -> None:
    """Makes a new name last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that does not do it
            raise
    finally:
        os.close(descriptor)


# -- Arrays as bytes -------------------------------------------------------------------------------


def pieces(array: Array) -> Iterator[Array]:
    """The bytes of an array in C order, little-endian, as flat arrays of at most CHUNK bytes."""
    array = array.astype(_little_endian(array.dtype), copy=False)
    if array.flags.c_contiguous or array.nbytes <= CHUNK:
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for begin in range(0, flat.size, CHUNK):
            yield flat[begin : begin + CHUNK]
        return
    rows = max(1, CHUNK * len(array) // array.nbytes)
    for begin in range(0, len(array), rows):
        yield from pieces(array[begin : begin + rows] if rows > 1 else array[begin])


def _little_endian(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("<") if dtype.kind != "V" else dtype


def _mapped(
    mapping: mmap.mmap, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int, order: str = "C"
) -> Array:
    count = math.prod(shape)
    if not count:
        return np.empty(shape, dtype)
    array = np.frombuffer(mapping, dtype, count, offset)
    return array.reshape(shape, order="F" if order == "F" else "C")


def _mapping(file: BinaryIO) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


# -- NumPy's .npz ----------------------------------------------------------------------------------


def write_npz(output: Output, document: str, arrays: Mapping[str, Array]) -> None:
    archive = zipfile.ZipFile(output, "w")  # type: ignore[call-overload]
    try:
        archive.writestr(zipfile.ZipInfo(DOCUMENT), document)
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                is_fortran = array.flags.f_contiguous and not array.flags.c_contiguous
                member.write(_npy_header(array, is_fortran, output.tell()))
                for piece in pieces(array.T if is_fortran else array):
                    member.write(piece)
    except BaseException:
        # the file is thrown away; to close the archive in the middle of a member would raise another error instead
        archive.fp = None
        raise
    archive.close()


def _npy_header(array: Array, is_fortran: bool, at: int) -> bytes:
    """The header of an .npy member that begins ``at`` a place; behind it the array begins at a multiple of 64."""
    fields = {"descr": _little_endian(array.dtype).str, "fortran_order": is_fortran, "shape": array.shape}
    text = repr(fields).encode("latin1")
    text += b" " * (-(at + 10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def read_npz(file: BinaryIO) -> Contents:
    document, places = None, {}
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{info.filename} is compressed, and files of fastopt are not")
            with archive.open(info) as member:
                if info.filename == DOCUMENT:
                    document = member.read().decode("utf-8")
                    continue
                dtype, shape, is_fortran = _read_npy_header(member)
                at = member.tell()
                while member.read(CHUNK):  # zipfile compares the checksum at the end
                    pass
            name = info.filename.removesuffix(".npy")
            if math.prod(shape) * dtype.itemsize != info.file_size - at or name in places:
                raise ValueError(f"{info.filename} does not have the size that it says")
            file.seek(info.header_offset)
            name_size, extra_size = struct.unpack("<HH", file.read(30)[26:])
            at += info.header_offset + 30 + name_size + extra_size
            places[name] = dtype, shape, at, "F" if is_fortran else "C"
    if document is None:
        raise ValueError(f"it has no {DOCUMENT}")
    mapping = _mapping(file)
    return document, {name: _mapped(mapping, *place) for name, place in places.items()}


def _read_npy_header(member: Any) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    start = member.read(10)
    if start[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError("it has a member that is no array")
    (length,) = struct.unpack("<H", start[8:])
    if length > 10_000:  # literal_eval may overflow the stack
        raise ValueError("it has a member that is no array")
    text = member.read(length)
    fields = ast.literal_eval(text.decode("latin1").strip())
    dtype = np.dtype(fields["descr"])
    if dtype.hasobject or dtype.fields:
        raise ValueError("it has objects, which are not read")
    shape, is_fortran = fields["shape"], fields["fortran_order"]
    return dtype, _checked_shape(shape), bool(is_fortran)


def _checked_shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple | list) or not all(type(n) is int and 0 <= n < 2**62 for n in shape):
        raise ValueError("it has an array whose shape is none")
    return tuple(shape)


# -- safetensors -----------------------------------------------------------------------------------

SAFETENSORS_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
CHECKSUMS = b'"crc32":"'
"""The text before the checksums in the header: 8 digits for the header itself, with zeros in their place, then 8 for
each array. In a string of the header the quotes would be escaped."""


def write_safetensors(output: Output, document: str, arrays: Mapping[str, Array]) -> None:
    arrays = dict(sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize))  # so that all are aligned
    header: dict[str, Any] = {"__metadata__": {"fastopt": document, "crc32": "0" * 8 * (1 + len(arrays))}}
    end = 0
    for name, array in arrays.items():
        kind = SAFETENSORS_NAMES.get(array.dtype.name)
        if kind is None:
            raise TypeError(f"{name}: safetensors has no dtype {array.dtype}; save to .npz, or convert it")
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    output.write(struct.pack("<Q", len(text)))
    output.write(text)
    checksums = [zlib.crc32(text)]
    for array in arrays.values():
        checksum = 0
        for piece in pieces(array):
            checksum = zlib.crc32(piece, checksum)  # type: ignore[arg-type]
            output.write(piece)
        checksums.append(checksum)
    output.seek(8 + text.index(CHECKSUMS) + len(CHECKSUMS))
    output.write("".join(f"{checksum:08x}" for checksum in checksums).encode())


def read_safetensors(file: BinaryIO) -> Contents:
    room = os.fstat(file.fileno()).st_size - 8
    (length,) = struct.unpack("<Q", file.read(8))
    if length > room:
        raise ValueError("it is no safetensors file")
    text = file.read(length)
    header = json.loads(text)
    metadata = header.pop("__metadata__", {})
    if "fastopt" not in metadata or "crc32" not in metadata:
        raise ValueError("it has no metadata of fastopt")
    at = text.index(CHECKSUMS) + len(CHECKSUMS)
    digits = metadata["crc32"]
    if not re.fullmatch(f"([0-9a-f]{{8}}){{{1 + len(header)}}}", digits):
        raise ValueError("its checksums are damaged")
    checksums = [int(digits[i : i + 8], 16) for i in range(0, len(digits), 8)]
    _compare(zlib.crc32(text[:at] + b"0" * len(digits) + text[at + len(digits) :]), checksums[0])
    dtypes = {kind: name for name, kind in SAFETENSORS_NAMES.items()}
    places = {}
    for (name, entry), right in zip(header.items(), checksums[1:], strict=True):
        dtype = _little_endian(storage_dtype(dtypes[entry["dtype"]]))
        shape, (begin, end) = _checked_shape(entry["shape"]), entry["data_offsets"]
        if not 0 <= begin <= end <= room - length or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} does not have the size that it says")
        places[name] = dtype, shape, 8 + length + begin
        file.seek(8 + length + begin)
        checksum = 0
        for size in [CHUNK] * ((end - begin) // CHUNK) + [(end - begin) % CHUNK]:
            checksum = zlib.crc32(file.read(size), checksum)
        _compare(checksum, right)
    mapping = _mapping(file)
    return metadata["fastopt"], {name: _mapped(mapping, *place) for name, place in places.items()}


def _compare(checksum: int, right: int) -> None:
    if checksum != right:
        raise ValueError("its checksums do not fit")


# -- By suffix -------------------------------------------------------------------------------------

FORMATS: dict[str, tuple[Callable[[Output, str, Mapping[str, Array]], None], Callable[[BinaryIO], Contents]]] = {
    ".npz": (write_npz, read_npz),
    ".safetensors": (write_safetensors, read_safetensors),
}


def checked_path(path: Any) -> tuple[str, str]:
    """A path as a string, and its suffix, which says how a file is written."""
    try:
        found = os.fsdecode(path)
    except TypeError:
        raise TypeError(f"path: expected a string or a path, got {type(path).__name__}") from None
    suffix = os.path.splitext(found)[1].lower()
    if suffix not in FORMATS:
        raise ValueError(f"{found}: its suffix must be {' or '.join(FORMATS)}")
    return found, suffix


def write(path: str, suffix: str, document: str, arrays: Mapping[str, Array]) -> None:
    """Writes a file, or replaces one."""
    with replaced(path) as output:
        FORMATS[suffix][0](output, document, arrays)


def read(path: str, suffix: str) -> Contents:
    """Reads a file, all of which is compared with its checksums first."""
    with open(path, "rb") as file:
        try:
            return FORMATS[suffix][1](file)
        except (MemoryError, ImportError):
            raise
        except Exception as error:  # of bytes that anybody may have written anything may be said
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            raise ValueError(f"{path}: {NO_CHECKPOINT} ({error})") from error
