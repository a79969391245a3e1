"""State trees in files: dicts, lists, tuples, numbers, strings, None and numpy arrays.

A file is a safetensors file, which other programs can read: the arrays under their paths in the
tree (`learner/optimizer/mean`), and in the header's metadata, under `rlpg`, the rest as JSON:

    {"format": "rlpg checkpoint", "version": 2, "sha256": "...", "tree": ...}

The tree refers to the arrays, and has tags where JSON has no word: `{"$array": path}`,
`{"$float": "nan"}`, `{"$tuple": [...]}`, and `{"$items": [[key, value], ...]}` for dicts whose keys
are not all plain strings. The sha256 is that of the whole file with zeros in the digest's place.

A file from a stranger can do no harm: nothing in it is executed, every claim is judged before
memory is taken for it, and reading takes about the memory that the file's size suggests.
"""

from __future__ import annotations

import json
import math
import re
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.numpy

from rlpg.errors import FileError
from rlpg.runs import files

VERSION: Final = 2
LARGEST_HEADER: Final = 4 << 20  # bytes; the objects in it may take 25 times that
DEEPEST_JSON: Final = 64
DTYPES: Final = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_NO_DIGEST = "0" * 64

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]
Place = tuple[np.dtype[Any], list[int], int]  # of an array: dtype, shape, first byte of the body


def pack(kind: str, limit: int, tree: object) -> bytearray:
    """The file of a state tree with at most `limit` bytes of arrays.

    Raises:
        TypeError, ValueError: something in it has no place in a file, or it is too large.
    """
    plain, arrays = split(tree)
    content = {"format": kind, "version": VERSION, "sha256": _NO_DIGEST, "tree": plain}
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    data = bytearray(safetensors.numpy.save(arrays, {"rlpg": text}))
    length = int.from_bytes(data[:8], "little")
    try:  # what could not be read back is not written
        _judged(data[8 : 8 + length], len(data) - 8 - length, Path(kind), kind, limit)
    except FileError as error:
        raise ValueError(str(error)) from None
    return sealed(data)


def sealed(data: bytearray) -> bytearray:
    """The file with its digest in the place of the first 64 zeros, which hold it free."""
    at = data.index(_NO_DIGEST.encode())
    data[at : at + 64] = sha256(data).hexdigest().encode()
    return data


def unpack(path: Path, kind: str, limit: int) -> Any:
    """The state tree in a file with at most `limit` bytes of arrays, which may be changed in place.

    Raises:
        FileError: missing, damaged, not of this kind and version, or with a claim that does not fit
            the file.
    """
    with files.reading(path) as file:
        prefix = file.take(min(8, file.size))
        length = int.from_bytes(prefix, "little")
        if file.size < 8 or length > min(file.size - 8, LARGEST_HEADER):
            raise FileError(f"{path}: expected a safetensors header that fits, got {length} bytes")
        header = file.take(length)
        content, places = _judged(header, file.size - 8 - length, path, kind, limit)
        body = file.take(file.size - 8 - length)
    digest = content["sha256"].encode()
    actual = sha256(prefix + header.replace(digest, _NO_DIGEST.encode(), 1))
    actual.update(body)
    if actual.hexdigest().encode() != digest:
        raise FileError(f"{path}: expected content with the sha256 in its header, got other")
    arrays: Arrays = {}
    for name, (dtype, shape, begin) in places.items():
        try:
            array = np.frombuffer(body, dtype, math.prod(shape), begin).reshape(shape)
        except ValueError as error:
            raise FileError(f"{path}: {name!r:.80}: expected an array, got {error}") from None
        if dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
            raise FileError(f"{path}: {name!r:.80}: expected bools, got other bytes")
        arrays[name] = array
    return join(content["tree"], arrays, path)


def _judged(
    header: bytearray, size: int, path: Path, kind: str, limit: int
) -> tuple[dict[str, Any], dict[str, Place]]:
    """What a safetensors header says, if it fits a body of `size` bytes; else FileError."""
    if len(header) > LARGEST_HEADER:
        raise FileError(f"{path}: expected a header of at most {LARGEST_HEADER} bytes, got more")
    entries = from_json(header, path)
    metadata = entries.pop("__metadata__", None) if isinstance(entries, dict) else None
    text = metadata.get("rlpg") if isinstance(metadata, dict) else None
    content = from_json(text, path) if isinstance(text, str) else None
    if not isinstance(content, dict) or content.get("format") != kind:
        raise FileError(f"{path}: expected the format {kind!r}, got another")
    if content.get("version") != VERSION:
        raise FileError(
            f"{path}: expected format version {VERSION}, got {content.get('version')!r:.80}; "
            "read it with the rlpg that wrote it"
        )
    if not re.fullmatch("[0-9a-f]{64}", str(content.get("sha256"))) or "tree" not in content:
        raise FileError(f"{path}: expected a tree with its sha256 in its header, got none")
    if size > limit:
        raise FileError(f"{path}: expected at most {limit} bytes of arrays, got {size}")
    places: dict[str, Place] = {}
    spans = [(size, size)]
    for name, entry in entries.items():
        places[name], span = _place(entry, f"{path}: {name!r:.80}")
        spans.append(span)
    spans.sort()
    if [begin for begin, _ in spans] != [0, *(end for _, end in spans[:-1])]:
        raise FileError(f"{path}: expected arrays side by side to the end, got other offsets")
    return content, places


def _place(entry: Any, where: str) -> tuple[Place, tuple[int, int]]:
    """Where one array is, and the first byte and the one after its last."""
    try:
        dtype, shape = np.dtype(DTYPES[entry["dtype"]]), entry["shape"]
        begin, end = entry["data_offsets"]
        sizes = [*shape, begin, end]
    except (KeyError, TypeError, ValueError):
        raise FileError(f"{where}: expected dtype, shape and data_offsets, got others") from None
    if len(sizes) > 66 or any(type(n) is not int or not 0 <= n < 2**63 for n in sizes):
        raise FileError(f"{where}: expected a few integers >= 0 as sizes, got {sizes!r:.80}")
    num_bytes = dtype.itemsize * math.prod(shape)
    if end - begin != num_bytes or begin % dtype.itemsize:
        raise FileError(
            f"{where}: expected {num_bytes} bytes for {shape!r:.80}, got {begin} to {end}"
        )
    return (dtype, shape, begin), (begin, end)


# ---- JSON ------------------------------------------------------------------------------------


def to_json(value: object) -> bytes:
    """JSON for people to read. ValueError for NaN and infinity."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def from_json(data: bytes | bytearray | str, path: Path) -> Any:
    """The value in JSON text; FileError for damage, repeated keys, NaN, too much of anything."""
    try:
        value = json.loads(data, object_pairs_hook=_distinct, parse_constant=_refuse_constant)
    except RecursionError:
        raise FileError(f"{path}: expected JSON at most {DEEPEST_JSON} deep, got deeper") from None
    except ValueError as error:
        raise FileError(f"{path}: expected JSON, got something else: {error}") from None
    level = [value]
    for _ in range(DEEPEST_JSON):
        tables = [node for node in level if isinstance(node, dict)]
        level = [child for node in level if isinstance(node, list) for child in node]
        level += [child for node in tables for child in node.values()]
        if not level:
            return value
    raise FileError(f"{path}: expected JSON at most {DEEPEST_JSON} deep, got deeper")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a key stands twice")
    return table


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


# ---- state trees -----------------------------------------------------------------------------


def split(tree: object) -> tuple[Any, Arrays]:
    """The tree without its arrays, fit for JSON, and the arrays by path; TypeError for misfits."""
    arrays: Arrays = {}

    def plain(node: object, path: str) -> Any:
        if node is None or isinstance(node, bool | int | str):
            return node
        if isinstance(node, float):
            return float(node) if math.isfinite(node) else {"$float": repr(float(node))}
        if isinstance(node, np.ndarray):
            dtype = node.dtype.newbyteorder("<")
            if dtype not in map(np.dtype, DTYPES.values()):
                raise TypeError(f"{path}: expected an array of numbers or bools, got {node.dtype}")
            name = path or "array"
            while name in arrays or name == "__metadata__":  # "a/b" is a key too
                name += "~"
            arrays[name] = np.asarray(node, dtype=dtype, order="C")
            return {"$array": name}
        if isinstance(node, list):
            return [plain(child, f"{path}/{i}".lstrip("/")) for i, child in enumerate(node)]
        if isinstance(node, tuple):
            return {"$tuple": plain(list(node), path)}
        if isinstance(node, dict):
            if all(isinstance(key, str) and not key.startswith("$") for key in node):
                return {k: plain(child, f"{path}/{k}".lstrip("/")) for k, child in node.items()}
            return {"$items": plain([list(item) for item in node.items()], path)}
        kind = type(node).__name__
        raise TypeError(f"{path}: expected plain values or numpy arrays, got {kind}")

    return plain(tree, ""), arrays


def join(plain: Any, arrays: Arrays, path: Path) -> Any:
    """The inverse of `split`; FileError where tags and arrays do not match one to one."""
    unused = dict(arrays)

    def tree(node: Any) -> Any:
        if isinstance(node, list):
            return [tree(child) for child in node]
        if not isinstance(node, dict):
            return node
        match node:
            case {"$float": "nan" | "inf" | "-inf" as text, **rest} if not rest:
                return float(text)
            case {"$array": str(name), **rest} if not rest and name in unused:
                return unused.pop(name)
            case {"$tuple": list(children), **rest} if not rest:
                return tuple(tree(child) for child in children)
            case {"$items": list(items), **rest} if not rest:
                try:
                    return {tree(key): tree(child) for key, child in items}
                except (TypeError, ValueError):
                    raise FileError(f"{path}: expected key-value pairs, got others") from None
        if any(key.startswith("$") for key in node):
            raise FileError(f"{path}: expected known tags and arrays, got {list(node)!r:.80}")
        return {key: tree(child) for key, child in node.items()}

    joined = tree(plain)
    if unused:
        raise FileError(
            f"{path}: expected a place for each array, got none for {min(unused)!r:.80}"
        )
    return joined
