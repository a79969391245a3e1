import math

import numpy as np
import pytest

from rlpg.errors import FileError, NumericalFault
from rlpg.runs import files
from rlpg.runs.encoding import seal, sha256
from rlpg.runs.policy_files import load_policy, save_policy


def a_policy(k=0):
    description = {"step": k, "spaces": {"low": -math.inf, "shape": (4,)}, "note": "x"}
    return description, {
        "weight": np.full((3, 2), k + 0.5, np.float32),
        "count": np.array(k, np.int64),
    }


def equal(read, wanted):
    return read[0] == wanted[0] and all(
        np.array_equal(read[1][name], array) and read[1][name].dtype == array.dtype
        for name, array in wanted[1].items()
    )


def test_round_trip_and_replacement(tmp_path):
    folder = tmp_path / "policy"
    for k in range(3):
        save_policy(folder, *a_policy(k))
        assert equal(load_policy(folder), a_policy(k))
        assert sorted(p.name for p in tmp_path.rglob("*")) == [
            "policy",
            "policy.json",
            "policy.safetensors",
        ]


def test_the_same_weights_under_a_new_description(tmp_path):
    description, arrays = a_policy()
    save_policy(tmp_path / "policy", description, arrays)
    save_policy(tmp_path / "policy", {"new": 1}, arrays)
    assert load_policy(tmp_path / "policy")[0] == {"new": 1}


def test_a_damaged_policy_is_replaced(tmp_path):
    folder = tmp_path / "policy"
    save_policy(folder, *a_policy(0))
    (folder / "policy.json").write_text("{}")
    with pytest.raises(FileError, match=r"policy\.json: expected a JSON object with its sha256"):
        load_policy(folder)
    save_policy(folder, *a_policy(1))
    assert equal(load_policy(folder), a_policy(1))


def test_weights_that_are_not_finite_are_never_published(tmp_path):
    save_policy(tmp_path / "policy", *a_policy(0))
    description, arrays = a_policy(1)
    arrays["weight"][0, 0] = np.nan
    with pytest.raises(NumericalFault, match="weight: expected finite weights to save"):
        save_policy(tmp_path / "policy", description, arrays)
    assert equal(load_policy(tmp_path / "policy"), a_policy(0))


def test_other_versions_and_formats_say_so(tmp_path):
    folder = tmp_path / "policy"
    save_policy(folder, *a_policy())
    (folder / "policy.json").write_bytes(seal({"format": "rlpg policy", "version": 7}))
    with pytest.raises(FileError, match="expected format version 1, got 7; load it with"):
        load_policy(folder)
    (folder / "policy.json").write_bytes(seal({"format": "rlpg checkpoint", "version": 1}))
    with pytest.raises(FileError, match="expected format 'rlpg policy', got 'rlpg checkpoint'"):
        load_policy(folder)


def test_a_reader_between_the_writers_steps_finds_a_policy(tmp_path, monkeypatch):
    folder = tmp_path / "policy"
    save_policy(folder, *a_policy(0))
    seen = []
    write = files.write

    def write_and_look(path, data):
        write(path, data)
        seen.append(load_policy(folder)[0]["step"])

    monkeypatch.setattr(files, "write", write_and_look)
    save_policy(folder, *a_policy(1))
    assert seen == [0, 1, 1]


def test_a_reader_overtaken_by_a_writer_looks_again(tmp_path, monkeypatch):
    folder = tmp_path / "policy"
    save_policy(folder, *a_policy(0))
    read, overtakings = files.read, iter([1, 2])

    def read_and_be_overtaken(path, *, limit):
        data = read(path, limit=limit)
        step = next(overtakings, None) if path.name == "policy.json" else None
        if step is not None:
            with monkeypatch.context() as unpatched:
                unpatched.setattr(files, "read", read)
                save_policy(folder, *a_policy(step))
        return data

    monkeypatch.setattr(files, "read", read_and_be_overtaken)
    assert equal(load_policy(folder), a_policy(2))


def resealed(**changes):
    """A policy.json and its weights, consistent but for the changes."""
    weights = changes.pop("bytes", b"")
    record = {
        "description": {},
        "weights": {"size": len(weights), "sha256": sha256(weights)},
    } | changes
    return seal({"format": "rlpg policy", "version": 1, "policies": [record]})


@pytest.mark.parametrize(
    "text",
    [
        resealed(),
        resealed(description=[]),
        resealed(weights={"size": 0}),
        resealed(weights={"size": 2**62, "sha256": "0" * 64}),
        resealed(weights="../../../etc/passwd"),
        seal({"format": "rlpg policy", "version": 1}),
        seal({"format": "rlpg policy", "version": 1, "policies": 3}),
        seal({"format": "rlpg policy", "version": 1, "policies": []}),
        seal({"format": "rlpg policy", "version": 1, "policies": [{}]}),
        seal({"format": "rlpg policy", "version": [1] * 60}),
        b"[" * 100_000,
        b"\x80\x04\x95\x1b\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
        b"PK\x03\x04" + bytes(100),
        b"cos\nsystem\n(S'touch canary'\ntR.",
    ],
    ids=lambda text: repr(text[-60:]),
)
def test_descriptions_from_a_stranger(tmp_path, text):
    folder = tmp_path / "policy"
    save_policy(folder, *a_policy())
    (folder / "policy.json").write_bytes(text)
    with pytest.raises(FileError, match=r"policy\.(json|safetensors)"):
        load_policy(folder)


def test_description_is_data_that_nothing_acts_on(tmp_path):
    description = {"environment": {"id": "os:system", "entry_point": "os:system"}, "../x": "/etc"}
    save_policy(tmp_path / "policy", description, {})
    assert load_policy(tmp_path / "policy")[0] == description


def test_weights_that_are_not_finite_are_refused_when_read(tmp_path):
    from rlpg.runs.encoding import pack_arrays

    folder = tmp_path / "policy"
    folder.mkdir()
    weights = pack_arrays({"w": np.array([1.0, np.inf], np.float16)})
    (folder / "policy.safetensors").write_bytes(weights)
    (folder / "policy.json").write_bytes(resealed(bytes=weights))
    with pytest.raises(FileError, match=r"policy\.safetensors: 'w': expected finite values"):
        load_policy(folder)


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
def test_links_pipes_folders_and_giants_are_refused(tmp_path, name):
    import os

    folder = tmp_path / "policy"
    save_policy(folder, *a_policy())
    path = folder / name
    original = path.read_bytes()
    (tmp_path / "elsewhere").write_bytes(original)

    def refused(match):
        with pytest.raises(FileError, match=match):
            load_policy(folder)
        path.unlink() if not path.is_dir() or path.is_symlink() else path.rmdir()

    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    refused("got a symbolic link")
    os.mkfifo(path)
    refused("expected a regular file")
    path.mkdir()
    refused("expected a regular file")
    with path.open("wb") as file:
        file.truncate(10 << 30)  # a hole: no disk is used
    refused("expected at most")
    with pytest.raises(FileError, match="No such file"):
        load_policy(folder)


def test_every_mutation_is_refused_or_harmless(tmp_path):
    """Bit flips, cuts, zeroed blocks, swapped and missing files: the original or a FileError."""
    folder = tmp_path / "policy"
    save_policy(folder, *a_policy())
    generator = np.random.default_rng(0)
    originals = {path: path.read_bytes() for path in folder.iterdir()}
    refusals = []
    for k in range(600):
        path = sorted(originals)[k % 2]
        data = bytearray(originals[path])
        at = int(generator.integers(len(data)))
        match k % 3:
            case 0:
                data[at] ^= 1 << int(generator.integers(8))
            case 1:
                del data[at:]
            case 2:
                data[at : at + 16] = bytes(16)
        path.write_bytes(data)
        try:
            assert equal(load_policy(folder), a_policy())
        except FileError as error:
            refusals.append(str(error))
        path.write_bytes(originals[path])
    assert len(refusals) > 500
    assert all("policy." in line and "\n" not in line for line in refusals)
