import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlpg.errors import FileError
from rlpg.runs.encoding import (
    DTYPES,
    from_json,
    join,
    pack_arrays,
    seal,
    split,
    to_json,
    unpack_arrays,
    unseal,
)

PATH = Path("some.file")

arrays = hnp.arrays(
    st.sampled_from(sorted(DTYPES, key=str)), hnp.array_shapes(min_dims=0, min_side=0)
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


@settings(deadline=None)
@given(trees)
def test_a_state_tree_comes_back_bit_for_bit(tree):
    plain, leaves = split(tree)
    read = unpack_arrays(bytearray(pack_arrays(leaves)), PATH)
    assert same(join(from_json(to_json(plain), PATH), read, PATH), tree)


def test_random_generators_come_back():
    for kind in (np.random.PCG64, np.random.MT19937, np.random.Philox):
        generator = np.random.Generator(kind(5))
        plain, leaves = split(generator.bit_generator.state)
        read = unpack_arrays(bytearray(pack_arrays(leaves)), PATH)
        again = np.random.Generator(kind(0))
        again.bit_generator.state = join(from_json(to_json(plain), PATH), read, PATH)
        assert np.array_equal(generator.standard_normal(8), again.standard_normal(8))


def test_what_is_read_can_be_changed_and_is_what_the_library_reads():
    weights = {"b": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "a": np.array(True)}
    data = pack_arrays(weights)
    ours, theirs = unpack_arrays(bytearray(data), PATH), safetensors.numpy.load(data)
    assert ours.keys() == theirs.keys()
    assert all(same(ours[name], theirs[name]) for name in ours)
    ours["b"][0, 0] = 7.0


@pytest.mark.parametrize(
    "leaf", [np.array(["text"]), np.array([object()]), np.array([1j]), np.zeros(2, "M8[s]")]
)
def test_arrays_that_are_not_numbers_are_refused_before_anything_is_written(leaf):
    with pytest.raises(TypeError, match="expected an array of numbers or bools, got"):
        pack_arrays({"x": leaf})


@pytest.mark.parametrize("leaf", [np.int64(3), {1, 2}, b"bytes", Path("x"), print])
def test_values_without_a_place_are_named_with_their_path(leaf):
    with pytest.raises(TypeError, match=r"state/a/1: expected plain values or numpy arrays, got"):
        split({"a": [0, leaf]})


def test_what_could_not_be_read_back_is_not_written():
    deep = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(ValueError, match="at most 64 deep"):
        to_json(deep)
    with pytest.raises(ValueError, match="at most"):
        to_json("x" * (9 << 20))
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
        b"[" * 65 + b"]" * 65,
        b"[" * 500_000,
        b'{"a":' * 100_000,
        b"9" * 10_000,
        b" " * (9 << 20),
    ],
    ids=lambda text: repr(text[:12]),
)
def test_json_that_is_no_good(text):
    with pytest.raises(FileError, match=r"^some\.file: expected "):
        from_json(text, PATH)


def test_a_seal_breaks_with_any_change():
    content = {"a": [1, 2.5, None, "x"], "b": {"c": True}}
    data = seal(content)
    assert unseal(data, PATH) == content
    refusals = 0
    for i in range(len(data)):
        for bit in (1, 32):
            changed = bytearray(data)
            changed[i] ^= bit
            try:
                assert unseal(changed, PATH) == content  # only white space differs
            except FileError:
                refusals += 1
    assert refusals > len(data)


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


def header(text: str, body: int = 0, length: int | None = None) -> bytearray:
    raw = text.encode()
    claimed = len(raw) if length is None else length
    return bytearray(claimed.to_bytes(8, "little") + raw + bytes(body))


def entry(dtype="F32", shape="[2]", begin="0", end="8"):
    return f'{{"x": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{begin}, {end}]}}}}'


@pytest.mark.parametrize(
    "data",
    [
        bytearray(),
        bytearray(7),
        header("{}", length=2**63),
        header("{}", length=3),
        header("[]"),
        header("null"),
        header("[" * 100_000),
        header('{"x": 1}'),
        header('{"x": {}}'),
        header(entry("F33"), 8),
        header(entry("BF16", end="4"), 4),
        header(entry(shape="[1000000000]"), 8),
        header(entry(shape="[1000000000]", end="4000000000"), 8),
        header(entry(shape="[4294967296, 4294967296, 2]", end="8"), 8),
        header(entry(shape="[-1, -2]"), 8),
        header(entry(shape="[2.0]"), 8),
        header(entry(shape="[true, 2]"), 8),
        header(entry(shape='"2"'), 8),
        header(entry(shape="null"), 8),
        header(entry(shape="[" + "1," * 99 + "2]"), 8),
        header(entry(shape="[0, 10000000000000000000000]", end="0")),
        header(entry(shape="[0, 4611686018427387904, 4611686018427387904]", end="0")),
        header(entry(begin="-8", end="0"), 8),
        header(entry(begin="8", end="0"), 8),
        header(entry(begin="8", end="16"), 16),
        header(entry(), 16),
        header(entry(), 4),
        header(entry("BOOL", end="2"), 0) + bytearray([1, 2]),
        header(entry()[:-1] + ', "y": ' + entry()[6:], 8),
        header(entry()[:-1] + ", " + entry()[1:], 8),
    ],
    ids=lambda data: str(bytes(data[8:90])),
)
def test_safetensors_that_claim_what_is_not_there(data):
    with pytest.raises(FileError, match=r"^some\.file: ") as caught:
        unpack_arrays(data, PATH)
    assert len(str(caught.value)) < 400
