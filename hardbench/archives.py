"""NumPy archives from outside: sizes checked before memory is asked for, nothing unpickled."""

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hardbench import files
from hardbench.ram import free_memory

HEADER = 1000  # characters of an array's own description; NumPy writes about 120
SHARE = 0.5  # of the memory that is free: what reads the arrays needs as much again

Array = np.ndarray[Any, Any]


def read(path: Path, needed: Iterable[str] = (), more: Iterable[str] | None = None) -> dict[str, Array]:
    """The arrays of an .npz archive: the `needed` ones and what there is of `more` (None: all that there are).

    ValueError, with the array it is about, for a file that is no archive, lacks a needed array, holds Python objects (a pickle),
    promises more than it holds or than memory takes.
    """
    try:
        archive = zipfile.ZipFile(files.regular(path))
    except Exception as error:  # whatever a file that is none, or is damaged, does to its reader
        raise ValueError(f"no .npz archive ({error}); np.savez writes one") from None
    with archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        missing = [name for name in needed if name not in members]
        if missing:
            raise ValueError(f"no {', '.join(missing)} in it; it takes {', '.join(needed)}")
        wanted = members if more is None else {name: members[name] for name in (*needed, *more) if name in members}
        check_room(sum(info.file_size for info in wanted.values()))
        return {name: _array(archive, info, name) for name, info in wanted.items()}


def check_room(asked: int) -> None:
    """ValueError for arrays of more bytes than memory takes."""
    free = int(SHARE * free_memory())
    if asked > free:
        raise ValueError(f"it promises {asked / 1e9:.1f} GB of arrays; at most {free / 1e9:.1f} GB, half of the memory that is free")


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Array:
    try:
        with archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            describe = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, _, dtype = describe(file, max_header_size=HEADER)
            promised, held = math.prod(shape) * dtype.itemsize, info.file_size - file.tell()
            if dtype.hasobject:
                raise ValueError("Python objects (a pickle)")
            if promised != held or min(shape, default=0) < 0:
                raise ValueError(f"{'x'.join(map(str, shape))} values of {dtype} promised, {held} bytes there")
        with archive.open(info) as file:
            array = np.lib.format.read_array(file, allow_pickle=False, max_header_size=HEADER)
            if file.read(1):
                raise ValueError("more bytes than promised")
            return array
    except Exception as error:  # whatever damage, encryption or an unknown compression does to the readers of zip and NumPy
        said = str(error) if isinstance(error, ValueError | OSError | RuntimeError) else f"{type(error).__name__}: {error}"
        problem = "holds Python objects (a pickle); plain arrays" if "(a pickle)" in said else f"cannot be read ({' '.join(said.split())})"
        raise ValueError(f"{name} {problem}") from None
