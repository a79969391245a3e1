"""State trees <-> JSON and safetensors, read so that a file from a stranger can do no harm.

A state tree is made of dicts, lists, tuples, numbers, strings, None and numpy arrays. The arrays
go to safetensors under their path (`/optimizer/state/0/exp_avg`), the rest to JSON, with tags where
JSON has no word: `{"$array": path}`, `{"$float": "nan"}`, `{"$tuple": [...]}`, and
`{"$items": [[key, value], ...]}` for dicts whose keys are not all plain strings.

What is read is measured before it is used: sizes, header lengths, element counts, nesting. The
memory it takes is that of the file; nothing in a file is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.numpy

from rlpg.errors import FileError

LARGEST_JSON: Final = 4 << 20  # bytes; the objects in it may take 50 times that
DEEPEST_JSON: Final = 64
DTYPES: Final = {
    np.dtype(code).newbyteorder("<"): name
    for code, name in {
        "?": "BOOL",
        "u1": "U8",
        "i1": "I8",
        "u2": "U16",
        "i2": "I16",
        "u4": "U32",
        "i4": "I32",
        "u8": "U64",
        "i8": "I64",
        "f2": "F16",
        "f4": "F32",
        "f8": "F64",
    }.items()
}
_BY_NAME: Final = {name: dtype for dtype, name in DTYPES.items()}

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


def sha256(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


# --- JSON ---


def to_json(value: object) -> bytes:
    """JSON for eyes too. ValueError where it could not be read back: too deep, too large, NaN."""
    data = (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
    try:
        from_json(data, Path("state"))
    except FileError as error:
        raise ValueError(str(error)) from None
    return data


def from_json(data: bytes | bytearray, path: Path) -> Any:
    """The value in JSON text; FileError for damage, repeated keys, NaN, too much of anything."""
    if len(data) > LARGEST_JSON:
        raise FileError(f"{path}: expected at most {LARGEST_JSON} bytes of JSON, got {len(data)}")
    try:
        value = json.loads(data, object_pairs_hook=_distinct, parse_constant=_refuse_constant)
    except RecursionError:
        raise FileError(f"{path}: expected JSON at most {DEEPEST_JSON} deep, got deeper") from None
    except ValueError as error:
        raise FileError(f"{path}: expected JSON, got something else: {error}") from None
    level = [value]
    for _ in range(DEEPEST_JSON):
        level = [child for node in level for child in _children(node)]
        if not level:
            return value
    raise FileError(f"{path}: expected JSON at most {DEEPEST_JSON} deep, got deeper")


def _children(node: object) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a key stands twice")
    return table


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def seal(content: Mapping[str, Any]) -> bytes:
    """JSON of the content with its own sha256, so that a flipped bit cannot pass unseen."""
    return to_json({"sha256": _fingerprint(content), **content})


def unseal(data: bytes | bytearray, path: Path) -> dict[str, Any]:
    """What was sealed; FileError if it was changed since."""
    content = from_json(data, path)
    if not isinstance(content, dict) or "sha256" not in content:
        raise FileError(f"{path}: expected a JSON object with its sha256, got something else")
    claimed = content.pop("sha256")
    if claimed != _fingerprint(content):
        raise FileError(f"{path}: expected content with sha256 {claimed!s:.64}, got other content")
    return content


def _fingerprint(content: Mapping[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


# --- safetensors ---


def pack_arrays(arrays: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """The arrays as one safetensors file; TypeError for dtypes that are not plain numbers."""
    plain: Arrays = {}
    for name, array in arrays.items():
        dtype = array.dtype.newbyteorder("<")
        if dtype not in DTYPES:
            raise TypeError(f"{name}: expected an array of numbers or bools, got {array.dtype}")
        plain[name] = np.asarray(array, dtype=dtype, order="C")
    return safetensors.numpy.save(plain)


def unpack_arrays(data: bytearray, path: Path) -> Arrays:
    """The arrays of a safetensors file: views of `data`, named as in the header.

    Written here rather than left to the library so that every claim is judged before memory is
    taken, and so that the arrays are not copied.

    Raises:
        FileError: any claim that does not fit the file exactly; overlaps and gaps included.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, LARGEST_JSON):
        raise FileError(f"{path}: expected a safetensors header that fits the file, got {length}")
    header = from_json(data[8 : 8 + length], path)
    if not isinstance(header, dict):
        raise FileError(f"{path}: expected a safetensors header, got {type(header).__name__}")
    header.pop("__metadata__", None)
    arrays: Arrays = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        arrays[name], span = _array(entry, data, 8 + length, f"{path}: {name!r:.80}")
        spans.append(span)
    spans.sort()
    begins = [begin for begin, _ in spans] + [len(data) - 8 - length]
    ends = [0] + [end for _, end in spans]
    if begins != ends:
        raise FileError(f"{path}: expected arrays side by side to the end, got other offsets")
    return arrays


def _array(
    entry: Any, data: bytearray, start: int, where: str
) -> tuple[np.ndarray[Any, np.dtype[Any]], tuple[int, int]]:
    """One array, and where its bytes begin and end after `start`."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sizes = [*shape, begin, end]
        known = _BY_NAME[dtype]
    except (KeyError, TypeError, ValueError):
        raise FileError(f"{where}: expected dtype, shape and data_offsets, got others") from None
    if any(type(size) is not int or size < 0 for size in sizes):
        raise FileError(f"{where}: expected sizes that are integers >= 0, got {sizes!r:.80}")
    count = math.prod(shape)
    if not begin <= end <= len(data) - start or count * known.itemsize != end - begin:
        raise FileError(
            f"{where}: expected {count * known.itemsize} bytes for {dtype} {shape!r:.80}, "
            f"got bytes {begin} to {end} of {len(data) - start}"
        )
    try:
        array = np.frombuffer(data, known, count, start + begin).reshape(shape)
    except (ValueError, OverflowError) as error:
        raise FileError(f"{where}: expected a shape numpy can hold, got {error}") from None
    if known.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
        raise FileError(f"{where}: expected bools, got other bytes")
    return array, (begin, end)


# --- state trees ---


def split(tree: object) -> tuple[Any, Arrays]:
    """The tree without its arrays, fit for JSON, and the arrays by path; TypeError for misfits."""
    arrays: Arrays = {}

    def plain(node: object, path: str) -> Any:
        if node is None or isinstance(node, bool | int | str):
            return node
        if isinstance(node, float):
            return float(node) if math.isfinite(node) else {"$float": repr(float(node))}
        if isinstance(node, np.ndarray):
            arrays[path] = node
            return {"$array": path}
        if isinstance(node, list):
            return [plain(child, f"{path}/{i}") for i, child in enumerate(node)]
        if isinstance(node, tuple):
            return {"$tuple": plain(list(node), path)}
        if isinstance(node, dict):
            if all(isinstance(key, str) and not key.startswith("$") for key in node):
                return {k: plain(child, f"{path}/{_escaped(k)}") for k, child in node.items()}
            return {"$items": plain([list(item) for item in node.items()], f"{path}/$")}
        kind = type(node).__name__
        raise TypeError(f"state{path}: expected plain values or numpy arrays, got {kind}")

    return plain(tree, ""), arrays


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


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
