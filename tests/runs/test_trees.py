import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlpg.errors import FileError
from rlpg.runs.trees import DTYPES, from_json, join, pack, sealed, split, to_json, unpack

PATH = Path("some.file")
KIND, LIMIT = "a test", 1 << 20

arrays = hnp.arrays(
    st.sampled_from(sorted(DTYPES.values())).map(np.dtype), hnp.array_shapes(min_dims=0, min_side=0)
)
keys = st.text(max_size=6) | st.sampled_from(["$array", "$", "a/b", "a~b", "~1", "__metadata__"])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | keys | arrays
trees = st.recursive(
    leaves,
    lambda child: (
        st.lists(child, max_size=3)
        | st.dictionaries(keys | st.integers() | st.none(), child, max_size=3)
        | st.tuples(child, child)
    ),
    max_leaves=12,
)


def same(a, b):
    """Equal in type and bits, NaN included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return repr(a) == repr(b)
    return a == b


def again(tree, folder):
    """The tree after it was in a file."""
    (folder / "file").write_bytes(pack(KIND, LIMIT, tree))
    return unpack(folder / "file", KIND, LIMIT)


@settings(max_examples=50)
@given(tree=trees)
def test_a_state_tree_comes_back_bit_for_bit(tmp_path_factory, tree):
    assert same(again(tree, tmp_path_factory.getbasetemp()), tree)


def test_random_generators_come_back(tmp_path):
    for kind in (np.random.PCG64, np.random.MT19937, np.random.Philox):
        generator = np.random.Generator(kind(5))
        other = np.random.Generator(kind(0))
        other.bit_generator.state = again(generator.bit_generator.state, tmp_path)
        assert np.array_equal(generator.standard_normal(8), other.standard_normal(8))


def test_what_is_read_can_be_changed_and_is_what_the_library_reads(tmp_path):
    weights = {"b": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "a": {"c": np.array(True)}}
    ours = again(weights, tmp_path)
    theirs = safetensors.numpy.load_file(tmp_path / "file")
    assert theirs.keys() == {"b", "a/c"}
    assert same(ours, {"b": theirs["b"], "a": {"c": theirs["a/c"]}})
    ours["b"][0, 0] = 7.0


def test_arrays_whose_paths_are_the_same_are_both_there(tmp_path):
    tree = {"a/b": np.zeros(1), "a": {"b": np.ones(1)}, "__metadata__": np.full(1, 2.0)}
    assert same(again(tree, tmp_path), tree)


def test_the_same_tree_is_the_same_file():
    """The order of metadata in files of the safetensors library is that of a hash."""
    tree = {f"{name}": {"w": np.zeros(3), "x": name} for name in range(20)}
    assert pack(KIND, LIMIT, tree) == pack(KIND, LIMIT, tree)


@pytest.mark.parametrize(
    "leaf", [np.array(["text"]), np.array([object()]), np.array([1j]), np.zeros(2, "M8[s]")]
)
def test_arrays_that_are_not_numbers_are_refused_before_anything_is_written(leaf):
    with pytest.raises(TypeError, match="x: expected an array of numbers or bools, got"):
        split({"x": leaf})


@pytest.mark.parametrize("leaf", [np.int64(3), {1, 2}, b"bytes", Path("x"), print])
def test_values_without_a_place_are_named_with_their_path(leaf):
    with pytest.raises(TypeError, match=r"a/1: expected plain values or numpy arrays, got"):
        split({"a": [0, leaf]})


def test_what_could_not_be_read_back_is_not_written():
    deep = []
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(ValueError, match="expected a tree that is not so deep"):
        pack(KIND, LIMIT, deep)
    with pytest.raises(ValueError, match="expected at most 1048576 bytes of arrays and 4194304 of"):
        pack(KIND, LIMIT, "x" * (9 << 20))
    with pytest.raises(ValueError, match="of all else, got 1048584 and"):
        pack(KIND, LIMIT, np.zeros(LIMIT // 8 + 1))
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(math.nan)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"nul",
        b"[NaN]",
        b"[-Infinity]",
        b'{"a": 1, "a": 2}',
        b"9" * 10_000,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_json_that_is_no_good(text):
    with pytest.raises(FileError, match=r"^some\.file: expected "):
        from_json(text, PATH)


def test_a_seal_breaks_with_any_change(tmp_path):
    tree = {"a": [1, 2.5, None, "x"], "b": np.arange(4, dtype=np.uint8)}
    data = pack(KIND, LIMIT, tree)
    for i in range(len(data)):
        for bit in (1, 32):
            changed = bytearray(data)
            changed[i] ^= bit
            (tmp_path / "file").write_bytes(changed)
            with pytest.raises(FileError):
                unpack(tmp_path / "file", KIND, LIMIT)


@pytest.mark.parametrize(
    "plain",
    [
        {"$array": "missing"},
        {"$array": 3},
        {"$array": "x", "more": 1},
        {"$float": "1e3"},
        {"$float": 2},
        {"$tuple": {}},
        {"$items": [[1]]},
        {"$items": [[[], 1]]},
        {"$items": 5},
        {"$eval": "1"},
        [{"$array": "x"}, {"$array": "x"}],
        [],
    ],
    ids=str,
)
def test_tags_that_fit_no_array(plain):
    with pytest.raises(FileError, match=r"^some\.file: expected "):
        join(plain, {"x": np.zeros(2)}, PATH)


CONTENT = {"format": KIND, "version": 2, "sha256": "0" * 64, "tree": {"$array": "x"}}


def a_file(entries, body=0, length=None, **content):
    """A file whose digest is right: the arrays' entries as JSON text; the body, or its length."""
    metadata = json.dumps({"rlpg": json.dumps(CONTENT | content)})
    raw = f'{{"__metadata__": {metadata}{entries and ", "}{entries}}}'.encode()
    claimed = len(raw) if length is None else length
    tail = bytes(body) if isinstance(body, int) else body
    return bytes(sealed(bytearray(claimed.to_bytes(8, "little") + raw + tail)))


def entry(dtype="F32", shape="[2]", begin="0", end="8", name="x"):
    return f'"{name}": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{begin}, {end}]}}'


def test_the_forged_file_below_would_be_read_if_it_were_honest(tmp_path):
    (tmp_path / "file").write_bytes(a_file(entry(), 8))
    assert same(unpack(tmp_path / "file", KIND, LIMIT), np.zeros(2, np.float32))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(7),
        bytes(8),
        a_file("", length=2**63),
        a_file("", length=3),
        b"\2\0\0\0\0\0\0\0[]",
        b"\4\0\0\0\0\0\0\0null",
        b"\2\0\0\0\0\0\0\0{}",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        a_file(entry(shape="[" * 900 + "]" * 900), 8),
        a_file(""),
        a_file("", tree=1)[:-1] + b"x",
        a_file("", tree=1, version=1),
        a_file("", tree=1, format="another"),
        a_file(entry(), 8, sha256=5, tree="0" * 64),
        a_file(entry(), 8, sha256="/" * 64, tree="0" * 64),
        a_file(entry(), 8, tree={"$array": "y"}),
        a_file(entry(), 8, tree={"$pickle": "x"}),
        a_file(entry(), 8, tree="\ud800"),
        a_file('"x": 1'),
        a_file('"x": {}'),
        a_file(entry("F33"), 8),
        a_file(entry("BF16", end="4"), 4),
        a_file(entry(shape="[1000000000]"), 8),
        a_file(entry(shape="[1000000000]", end="4000000000"), 8),
        a_file(entry(shape="[4294967296, 4294967296, 2]", end="8"), 8),
        a_file(entry(shape="[-1, -2]"), 8),
        a_file(entry(shape="[2.0]"), 8),
        a_file(entry(shape="[true, 2]"), 8),
        a_file(entry(shape='"2"'), 8),
        a_file(entry(shape="null"), 8),
        a_file(entry(shape="[" + "1," * 99 + "2]"), 8),
        a_file(entry(shape="[" + "1," * 62 + "1, 1, 2]"), 8),
        a_file(entry(shape="[" + "9," * 500_000 + "2]"), 8),
        a_file(entry(shape="[0, 10000000000000000000000]", end="0")),
        a_file(entry(shape="[0, 4611686018427387904, 4611686018427387904]", end="0")),
        a_file(entry(begin="-8", end="0"), 8),
        a_file(entry(begin="8", end="0"), 8),
        a_file(entry(begin="8", end="16"), 16),
        a_file(entry(), 16),
        a_file(entry(), 4),
        a_file(entry("BOOL", end="2"), b"\1\2"),
        a_file(entry() + ", " + entry(name="y"), 8),
        a_file(entry() + ", " + entry(), 8),
        a_file(entry(shape="[524288]", end="2097152"), 2097152),
    ],
    ids=lambda data: str(data[-90:]),
)
def test_files_that_claim_what_is_not_there(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(FileError, match=r"file: ") as caught:
        unpack(tmp_path / "file", KIND, LIMIT)
    assert len(str(caught.value)) < 500


def test_a_hole_of_any_size_is_refused_without_reading_it(tmp_path):
    for start in (b"", a_file(entry(), 8)[:-8], a_file(entry(shape="[16000000000]"), 8)[:-8]):
        with (tmp_path / "file").open("wb") as file:
            file.write(start)
            file.truncate(64_000_000_000 + len(start))
        with pytest.raises(FileError, match="expected at most"):
            unpack(tmp_path / "file", KIND, LIMIT)
