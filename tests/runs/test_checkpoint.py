import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent))
from faulty import FaultyOs, Killed

from rlpg.errors import FileError, UsageError
from rlpg.runs import files
from rlpg.runs.checkpoint import load, newest, save
from rlpg.runs.encoding import pack_arrays, seal, sha256
from rlpg.runs.policy_files import load_policy, save_policy
from rlpg.runs.recipe import Recipe
from rlpg.runs.run import RunFolder, create_run

VERSIONS = {"numpy": np.__version__}
STEPS = (100, 200, 300, 400)


def a_state(step):
    generator = np.random.default_rng(step)
    return {
        "learner": {"weights": generator.standard_normal((4, 3)), "best": float("-inf")},
        "generator": generator.bit_generator.state,
        "optimizer": {"state": {0: {"step": np.array(float(step))}}, "betas": (0.9, 0.999)},
    }


def assert_whole(checkpoint):
    wanted = a_state(checkpoint.step)
    read = checkpoint.state
    assert np.array_equal(read["learner"].pop("weights"), wanted["learner"].pop("weights"))
    assert read["optimizer"]["state"].pop(0)["step"] == checkpoint.step
    del wanted["optimizer"]["state"][0]
    assert read == wanted


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path):
    path = save(tmp_path / "checkpoints", 100, a_state(100), versions=VERSIONS)
    assert path == tmp_path / "checkpoints" / "step-000000100"
    assert names(path) == ["arrays.safetensors", "manifest.json", "state.json"]
    checkpoint = load(path)
    assert (checkpoint.path, checkpoint.step, checkpoint.versions) == (path, 100, VERSIONS)
    assert_whole(checkpoint)
    checkpoint.state["generator"]["state"]["state"] += 1


@given(
    st.lists(st.integers(0, 10**12), min_size=1, max_size=12, unique=True).map(sorted),
    st.integers(1, 4),
    st.data(),
)
@settings(max_examples=25, deadline=None)
def test_pruning_keeps_the_last_ones_and_the_best(tmp_path_factory, steps, keep_last, data):
    folder = tmp_path_factory.mktemp("checkpoints")
    best = data.draw(st.sampled_from(steps))
    for step in steps:
        save(folder, step, {}, versions={}, keep_last=keep_last, keep=[best])
    assert set(names(folder)) == {f"step-{s:09d}" for s in {best, *steps[-keep_last:]}}
    assert newest(folder)[0].step == steps[-1]


def test_nothing_there(tmp_path):
    assert newest(tmp_path / "checkpoints") == (None, [])


def test_the_newest_valid_one_is_found(tmp_path):
    for step in STEPS:
        save(tmp_path, step, a_state(step), versions=VERSIONS, keep_last=9)
    (tmp_path / "step-000000400" / "state.json").unlink()
    arrays = tmp_path / "step-000000300" / "arrays.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"x")
    (tmp_path / "step-000000500").mkdir()
    (tmp_path / "step-000000600").symlink_to(tmp_path / "step-000000100")
    (tmp_path / "step-000000700").write_text("a file")
    (tmp_path / "step-7").mkdir()
    shutil.copytree(tmp_path / "step-000000100", tmp_path / "step-000000900")
    checkpoint, skipped = newest(tmp_path)
    assert checkpoint.step == 200
    assert_whole(checkpoint)
    assert [line.split(": ", 1)[0].removeprefix(f"{tmp_path}/step-000000") for line in skipped] == [
        "900/manifest.json",
        "500/manifest.json",
        "400/state.json",
        "300/arrays.safetensors",
    ]


def test_a_damaged_one_gives_way_and_a_valid_one_does_not(tmp_path):
    path = save(tmp_path, 100, {"a": 1}, versions={})
    save(tmp_path, 100, {"a": 2}, versions={})
    assert load(path).state == {"a": 1}
    (path / "state.json").write_text("")
    save(tmp_path, 100, {"a": 2}, versions={})
    assert load(path).state == {"a": 2}


def test_a_state_without_a_place_in_a_file_harms_nothing(tmp_path):
    save(tmp_path, 100, {}, versions={})
    for state in ({"a": object()}, {"a": np.array([None])}, {"a": "x" * (9 << 20)}):
        with pytest.raises((TypeError, ValueError)):
            save(tmp_path, 200, state, versions={})
    assert names(tmp_path) == ["step-000000100"]


# --- a fault at every operation ---


def three_checkpoints(folder):
    """A run with three checkpoints and both policies; made once, copied for each fault."""
    run = create_run(Recipe(), VERSIONS, path=folder)
    for step in STEPS[:3]:
        save_all(run, step)
    return run


def save_all(run, step):
    save(run.checkpoints, step, a_state(step), versions=VERSIONS)
    for folder in (run.policy, run.best_policy):
        save_policy(folder, {"step": step}, {"w": np.full(5, step, np.float32)})


def assert_recovers(run):
    """A checkpoint and both policies load; the next start cleans up and can go on."""
    checkpoint, skipped = newest(run.checkpoints)
    assert checkpoint.step in STEPS[2:]
    assert_whole(checkpoint)
    assert skipped == []
    for folder in (run.policy, run.best_policy):
        description, arrays = load_policy(folder)
        assert description["step"] in STEPS[2:]
        assert (arrays["w"] == description["step"]).all()
    with run.held():
        assert not [path for path in run.path.rglob("*") if path.name.startswith(".tmp-")]
        save_all(run, 400)
    assert names(run.checkpoints) == [f"step-000000{step}" for step in STEPS[1:]]
    assert newest(run.checkpoints)[0].step == 400
    assert load_policy(run.policy)[0] == load_policy(run.best_policy)[0] == {"step": 400}


@pytest.mark.parametrize("fault", ["ENOSPC", "EIO", "interrupted", "killed"])
def test_a_fault_at_any_operation_of_a_save_loses_nothing(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(files, "os", FaultyOs())
    template = three_checkpoints(tmp_path / "template").path
    faults = 0
    for k in itertools.count():
        run = RunFolder(tmp_path / f"{k}")
        shutil.copytree(template, run.path)
        with monkeypatch.context() as patched:
            faulty = FaultyOs(fault, k)
            patched.setattr(files, "os", faulty)
            try:
                save_all(run, 400)
            except (OSError, FileError, KeyboardInterrupt, Killed):
                faults += 1
        assert_recovers(run)
        shutil.rmtree(run.path)
        if faulty.operations <= k:
            break
    assert faults > k / 2 > 50  # a fault in looking or pruning may be survived without a word


def test_sigkill_at_any_operation_of_a_save_loses_nothing(tmp_path):
    """In a process of its own, which forks one child per operation and kills it there."""
    script = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); "
    script += "import test_checkpoint, pathlib; "
    script += "test_checkpoint.kill_everywhere(pathlib.Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def kill_everywhere(tmp_path):
    files.os = FaultyOs()
    template = three_checkpoints(tmp_path / "template").path
    for k in itertools.count():
        run = RunFolder(tmp_path / f"{k}")
        shutil.copytree(template, run.path)
        child = os.fork()
        if child == 0:
            files.os = FaultyOs("SIGKILL", k)
            save_all(run, 400)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL)
        assert_recovers(run)
        shutil.rmtree(run.path)
        if status == 0:
            break
    assert k > 100


def test_a_second_process_is_told_who_holds_the_run(tmp_path):
    run = three_checkpoints(tmp_path / "run")
    script = "import sys, pathlib; from rlpg.runs.run import RunFolder\n"
    script += "with RunFolder(pathlib.Path(sys.argv[1])).held(): print('held'); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(run.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match=f"in use by process {holder.pid};"), run.held():
            pass
        holder.kill()
    with run.held(), pytest.raises(UsageError, match=f"by process {os.getpid()};"), run.held():
        pass


def test_a_worker_that_outlives_its_killed_parent_does_not_hold_the_run(tmp_path):
    run = three_checkpoints(tmp_path / "run")
    script = "import os, sys, pathlib; from rlpg.runs.run import RunFolder\n"
    script += "with RunFolder(pathlib.Path(sys.argv[1])).held():\n"
    script += "    worker = os.fork()\n"
    script += "    os.write(1, f'{worker or \"held\"}\\n'.encode()); input()"  # one line, one write
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(run.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with parent:
        lines = {parent.stdout.readline(), parent.stdout.readline()}
        worker = int(next(line for line in lines if line != b"held\n"))
        with pytest.raises(UsageError, match="in use by process"), run.held():
            pass
        parent.kill()
        parent.wait()
        os.kill(worker, 0)  # it lives
        with run.held():
            pass
        os.kill(worker, signal.SIGKILL)


# --- files from others ---


def manifest(**changes):
    empty = {
        name: {"size": 0, "sha256": sha256(b"")} for name in ("state.json", "arrays.safetensors")
    }
    content = {
        "format": "rlpg checkpoint",
        "version": 1,
        "step": 100,
        "versions": {},
        "files": empty,
    }
    return seal(content | changes)


def file_table(state=b"{}", arrays=None):
    arrays = pack_arrays({}) if arrays is None else arrays
    contents = {"state.json": state, "arrays.safetensors": arrays}
    table = {n: {"size": len(data), "sha256": sha256(data)} for n, data in contents.items()}
    return contents | {"manifest.json": manifest(files=table)}


def write_checkpoint(tmp_path, contents):
    folder = tmp_path / "step-000000100"
    folder.mkdir()
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return folder


def test_the_forged_checkpoint_below_would_load_if_it_were_honest(tmp_path):
    assert load(write_checkpoint(tmp_path, file_table())).state == {}


PICKLE = b"cos\nsystem\n(S'touch canary'\ntR."


@pytest.mark.parametrize(
    "contents",
    [
        {},
        {"manifest.json": b"{}"},
        {"manifest.json": PICKLE},
        {"manifest.json": b"[" * 100_000},
        {"manifest.json": manifest()},
        {"manifest.json": manifest(format="rlpg policy")},
        {"manifest.json": manifest(version=2)},
        {"manifest.json": manifest(step=101)},
        {"manifest.json": manifest(step="100")},
        {"manifest.json": manifest(files={"../../../etc/passwd": {"size": 9, "sha256": ""}})},
        {"manifest.json": manifest(files=[])},
        {"manifest.json": manifest(versions=None)},
        file_table(PICKLE),
        file_table(b'{"a": {"$array": "/a"}}'),
        file_table(b'{"a": {"$pickle": "x"}}'),
        file_table(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        file_table(arrays=PICKLE),
        file_table(arrays=b"PK\x03\x04" + bytes(60)),
        file_table(arrays=(2**60).to_bytes(8, "little") + b"{}"),
        file_table(arrays=pack_arrays({"/a": np.zeros(3)})),
        file_table() | {"state.json": b"{} "},
        file_table() | {"arrays.safetensors": b""},
    ],
    ids=lambda contents: f"{list(contents)} {str(contents.get('manifest.json', ''))[-70:]}",
)
def test_checkpoints_from_a_stranger(tmp_path, monkeypatch, contents):
    monkeypatch.chdir(tmp_path)
    path = write_checkpoint(tmp_path, contents)
    with pytest.raises(FileError, match=r"step-000000100/(manifest|state|arrays)\."):
        load(path)
    assert names(tmp_path) == ["step-000000100"]


def test_a_hole_of_two_gigabytes_takes_no_memory(tmp_path):
    contents = file_table()
    path = write_checkpoint(tmp_path, contents)
    table = json.loads(contents["manifest.json"])["files"]
    for size in (2 << 30, 1 << 62):
        table["arrays.safetensors"]["size"] = size
        (path / "manifest.json").write_bytes(manifest(files=table))
        with (path / "arrays.safetensors").open("wb") as file:
            file.truncate(2 << 30)
        with pytest.raises(FileError, match=r"arrays\.safetensors: expected at most"):
            load(path)


def test_links_inside_a_checkpoint_are_not_followed(tmp_path):
    path = save(tmp_path, 100, a_state(100), versions={})
    for name in names(path):
        (path / name).rename(tmp_path / name)
        (path / name).symlink_to(tmp_path / name)
        with pytest.raises(FileError, match="got a symbolic link"):
            load(path)
        (path / name).unlink()
        (tmp_path / name).rename(path / name)
    assert_whole(load(path))


def test_every_mutation_is_refused_or_harmless(tmp_path):
    path = save(tmp_path, 100, a_state(100), versions=VERSIONS)
    generator = np.random.default_rng(1)
    originals = {name: (path / name).read_bytes() for name in names(path)}
    refused = 0
    for k in range(600):
        name = sorted(originals)[k % 3]
        data = bytearray(originals[name])
        at = int(generator.integers(len(data)))
        match k // 3 % 4:
            case 0:
                data[at] ^= 1 << int(generator.integers(8))
            case 1:
                del data[at:]
            case 2:
                data[at : at + 16] = bytes(16)
            case 3:
                data = bytearray(originals[sorted(originals)[k % 2 - 1]])
        (path / name).write_bytes(data)
        try:
            assert_whole(load(path))
        except FileError:
            refused += 1
        (path / name).write_bytes(originals[name])
    assert refused > 500
