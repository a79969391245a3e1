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
DTYPES: Final = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_NO_DIGEST = "0" * 64

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


def pack(kind: str, limit: int, tree: object) -> bytearray:
    """The file of a state tree with at most `limit` bytes of arrays; TypeError or ValueError where
    something in it has no place in a file, or it is too large."""
    try:
        plain, arrays = split(tree)
        content = {"format": kind, "version": VERSION, "sha256": _NO_DIGEST, "tree": plain}
        text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    except RecursionError:
        raise ValueError(f"{kind}: expected a tree that is not so deep") from None
    data = bytearray(safetensors.numpy.save(arrays, {"rlpg": text}))
    header = int.from_bytes(data[:8], "little")
    size = len(data) - 8 - header
    if size > limit or header > LARGEST_HEADER:  # what could not be read back is not written
        raise ValueError(
            f"{kind}: expected at most {limit} bytes of arrays and {LARGEST_HEADER} of all else, "
            f"got {size} and {header}"
        )
    return sealed(data)


def sealed(data: bytearray) -> bytearray:
    """The file with its digest in the place of the first 64 zeros, which hold it free."""
    at = data.index(_NO_DIGEST.encode())
    data[at : at + 64] = sha256(data).hexdigest().encode()
    return data


def unpack(path: Path, kind: str, limit: int) -> Any:
    """The state tree in a file with at most `limit` bytes of arrays, which may be changed in place;
    FileError where it is missing, damaged, not of this kind and version, or claims what does not
    fit."""
    data = files.read(path, limit=limit + LARGEST_HEADER + 8)
    begin = 8 + int.from_bytes(data[:8], "little")
    if not 8 < begin <= min(len(data), LARGEST_HEADER + 8):
        raise FileError(f"{path}: expected a safetensors header that fits, got {begin - 8} bytes")
    if len(data) - begin > limit:
        raise FileError(f"{path}: expected at most {limit} bytes of arrays, got more")
    try:
        entries = from_json(data[8:begin], path)
        content = _content(entries, path, kind)
        digest = content["sha256"].encode()
        body = memoryview(data)[begin:]
        actual = sha256(data[:begin].replace(digest, _NO_DIGEST.encode(), 1))
        actual.update(body)
        if actual.hexdigest().encode() != digest:
            raise FileError(f"{path}: expected content with the sha256 in its header, got other")
        arrays = {name: _array(entry, body, path, name) for name, entry in entries.items()}
        if sum(array.nbytes for array in arrays.values()) != len(body):
            raise FileError(f"{path}: expected arrays side by side to the end, got others")
        return join(content["tree"], arrays, path)
    except RecursionError:
        raise FileError(f"{path}: expected a tree that is not so deep") from None


def _content(entries: Any, path: Path, kind: str) -> dict[str, Any]:
    """What the header says besides the arrays, which alone remain in `entries`."""
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
    return content


def _array(entry: Any, body: memoryview, path: Path, name: str) -> np.ndarray[Any, Any]:
    """An array of the file, in the memory that was read."""
    try:
        dtype, shape = np.dtype(DTYPES[entry["dtype"]]), entry["shape"]
        begin, end = entry["data_offsets"]
        if any(type(n) is not int or n < 0 for n in (*shape[:99], begin, end)):
            raise ValueError("other sizes than integers >= 0")
        array = np.frombuffer(body[begin:end], dtype).reshape(shape)
        if dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
            raise ValueError("bytes that are no bools")
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise FileError(
            f"{path}: {name!r:.80}: expected an array that fits its bytes, got {error!r:.80}"
        ) from None
    return array


# ---- JSON ------------------------------------------------------------------------------------


def to_json(value: object) -> bytes:
    """JSON for people to read. ValueError for NaN and infinity."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def from_json(data: bytes | bytearray | str, path: Path) -> Any:
    """The value in JSON text; FileError for damage, repeated keys, NaN."""
    try:
        return json.loads(data, object_pairs_hook=_distinct, parse_constant=_refuse_constant)
    except ValueError as error:
        raise FileError(f"{path}: expected JSON, got something else: {error}") from None


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
