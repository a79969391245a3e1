import contextlib
import itertools
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent))
from faulty import FaultyOs, Killed

from rlpg.errors import FileError, NumericalFault, UsageError
from rlpg.runs import files
from rlpg.runs.recipe import Recipe
from rlpg.runs.run import RunFolder, create_run
from rlpg.runs.store import (
    CHECKPOINT,
    LARGEST,
    load_checkpoint,
    load_policy,
    newest_checkpoint,
    save_checkpoint,
    save_policy,
)
from rlpg.runs.trees import pack

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
    path = save_checkpoint(tmp_path / "checkpoints", 100, a_state(100), versions=VERSIONS)
    assert path == tmp_path / "checkpoints" / "step-000000100.safetensors"
    assert names(path.parent) == [path.name]
    checkpoint = load_checkpoint(path)
    assert (checkpoint.path, checkpoint.step, checkpoint.versions) == (path, 100, VERSIONS)
    assert_whole(checkpoint)
    checkpoint.state["generator"]["state"]["state"] += 1


@given(
    st.lists(st.integers(0, 10**12), min_size=1, max_size=12, unique=True).map(sorted),
    st.integers(1, 4),
    st.data(),
)
@settings(max_examples=12)
def test_pruning_keeps_the_last_ones_and_the_best(tmp_path_factory, steps, keep_last, data):
    folder = tmp_path_factory.mktemp("checkpoints")
    best = data.draw(st.sampled_from(steps))
    for step in steps:
        save_checkpoint(folder, step, {}, versions={}, keep_last=keep_last, keep=[best])
    assert set(names(folder)) == {f"step-{s:09d}.safetensors" for s in {best, *steps[-keep_last:]}}
    assert newest_checkpoint(folder)[0].step == steps[-1]


def test_nothing_there(tmp_path):
    assert newest_checkpoint(tmp_path / "checkpoints") == (None, [])


def test_the_newest_valid_one_is_found(tmp_path):
    for step in STEPS:
        save_checkpoint(tmp_path, step, a_state(step), versions=VERSIONS, keep_last=9)
    name = "step-{:09d}.safetensors".format
    (tmp_path / name(400)).write_bytes((tmp_path / name(400)).read_bytes()[:-1])
    (tmp_path / name(300)).write_bytes((tmp_path / name(300)).read_bytes()[:-1] + b"x")
    (tmp_path / name(500)).mkdir()
    (tmp_path / name(600)).symlink_to(tmp_path / name(100))
    (tmp_path / name(700)).write_text("a file")
    os.mkfifo(tmp_path / name(800))
    (tmp_path / "step-7.safetensors").mkdir()
    shutil.copy(tmp_path / name(100), tmp_path / name(900))
    checkpoint, skipped = newest_checkpoint(tmp_path)
    assert checkpoint.step == 200
    assert_whole(checkpoint)
    told = [line.partition(": ")[0] for line in skipped]
    assert told == [str(tmp_path / name(step)) for step in range(900, 200, -100)]


def test_a_damaged_one_gives_way_and_a_valid_one_does_not(tmp_path):
    path = save_checkpoint(tmp_path, 100, {"a": 1}, versions={})
    save_checkpoint(tmp_path, 100, {"a": 2}, versions={})
    assert load_checkpoint(path).state == {"a": 1}
    path.write_text("")
    save_checkpoint(tmp_path, 100, {"a": 2}, versions={})
    assert load_checkpoint(path).state == {"a": 2}


def test_a_state_without_a_place_in_a_file_harms_nothing(tmp_path):
    save_checkpoint(tmp_path, 100, {}, versions={})
    for state in ({"a": object()}, {"a": np.array([None])}, {"a": "x" * (9 << 20)}):
        with pytest.raises((TypeError, ValueError)):
            save_checkpoint(tmp_path, 200, state, versions={})
    assert names(tmp_path) == ["step-000000100.safetensors"]


# --- a fault at every operation ---


def three_checkpoints(folder):
    """A run with three checkpoints and both policies; made once, copied for each fault."""
    run = create_run(Recipe(), VERSIONS, path=folder)
    for step in STEPS[:3]:
        save_all(run, step)
    return run


def save_all(run, step):
    save_checkpoint(run.checkpoints, step, a_state(step), versions=VERSIONS)
    for folder in (run.policy, run.best_policy):
        save_policy(folder, {"step": step}, {"w": np.full(5, step, np.float32)})


def assert_recovers(run):
    """A checkpoint and both policies load; the next start cleans up and can go on."""
    checkpoint, skipped = newest_checkpoint(run.checkpoints)
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
    assert names(run.checkpoints) == [f"step-000000{step}.safetensors" for step in STEPS[1:]]
    assert newest_checkpoint(run.checkpoints)[0].step == 400
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
    assert faults > k / 2 > 10  # a fault in looking or pruning may be survived without a word


def test_sigkill_at_any_operation_of_a_save_loses_nothing(tmp_path):
    """In a process of its own, which forks one child per operation and kills it there."""
    script = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); "
    script += "import test_store, pathlib; "
    script += "test_store.kill_everywhere(pathlib.Path(sys.argv[1]))"
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
    assert k > 20


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


# --- policies ---


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


def test_a_policy_is_read_by_its_folder_and_its_file_and_is_replaced(tmp_path):
    folder = tmp_path / "policy"
    for k in range(3):
        save_policy(folder, *a_policy(k))
        assert equal(load_policy(folder), a_policy(k))
        assert equal(load_policy(folder / "policy.safetensors"), a_policy(k))
        assert names(folder) == ["policy.safetensors"]


def test_a_damaged_policy_is_replaced(tmp_path):
    save_policy(tmp_path, *a_policy(0))
    (tmp_path / "policy.safetensors").write_text("{}")
    with pytest.raises(FileError, match=r"policy\.safetensors: expected a safetensors header"):
        load_policy(tmp_path)
    save_policy(tmp_path, *a_policy(1))
    assert equal(load_policy(tmp_path), a_policy(1))


def test_weights_that_are_not_finite_are_neither_written_nor_read(tmp_path):
    save_policy(tmp_path, *a_policy(0))
    description, weights = a_policy(1)
    weights["weight"][0, 0] = np.nan
    with pytest.raises(NumericalFault, match="weight: expected finite weights to save"):
        save_policy(tmp_path, description, weights)
    assert equal(load_policy(tmp_path), a_policy(0))
    tree = {"description": description, "weights": weights}
    (tmp_path / "policy.safetensors").write_bytes(pack("rlpg policy", 1 << 20, tree))
    with pytest.raises(FileError, match=r"policy\.safetensors: 'weight': expected finite values"):
        load_policy(tmp_path)


def test_a_description_is_data_that_nothing_acts_on(tmp_path):
    description = {"environment": {"id": "os:system", "entry_point": "os:system"}, "../x": "/etc"}
    save_policy(tmp_path / "policy", description, {})
    assert load_policy(tmp_path / "policy")[0] == description
    assert names(tmp_path) == ["policy"]


# --- files from others ---


@pytest.mark.parametrize(
    "tree",
    [
        None,
        {},
        {"step": 100, "versions": {}},
        {"step": 101, "versions": {}, "state": {}},
        {"step": "100", "versions": {}, "state": {}},
        {"step": 100, "versions": None, "state": {}},
        {"step": -100, "versions": {}, "state": {}},
        {"description": {}},
        {"description": [], "weights": {}},
        {"description": {}, "weights": {"w": 1.0}},
        {"description": {}, "weights": {3: np.zeros(2)}},
        {"description": {}, "weights": np.zeros(2)},
    ],
    ids=str,
)
def test_files_with_another_tree(tmp_path, tree):
    for kind, path, read in (
        ("rlpg checkpoint", tmp_path / "step-000000100.safetensors", load_checkpoint),
        ("rlpg policy", tmp_path / "policy.safetensors", load_policy),
    ):
        path.write_bytes(pack(kind, 1 << 20, tree))
        with pytest.raises(FileError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: expected ")


def test_a_checkpoint_is_no_policy_and_a_policy_no_checkpoint(tmp_path):
    checkpoint = save_checkpoint(tmp_path, 100, {}, versions={})
    save_policy(tmp_path, {}, {})
    with pytest.raises(FileError, match="expected the format 'rlpg policy', got another"):
        load_policy(checkpoint)
    with pytest.raises(FileError, match="expected the format 'rlpg checkpoint', got another"):
        load_checkpoint(tmp_path / "policy.safetensors")


def test_links_pipes_sockets_folders_and_giants_are_refused_at_once(tmp_path):
    """A pipe without a writer made `rlpg resume` wait for ever."""
    save_policy(tmp_path, *a_policy())
    path = tmp_path / "policy.safetensors"
    original = path.read_bytes()
    (tmp_path / "elsewhere").write_bytes(original)

    def refused(match):
        with pytest.raises(FileError, match=match):
            load_policy(path)
        path.unlink() if not path.is_dir() or path.is_symlink() else path.rmdir()

    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    refused("got a symbolic link")
    path.symlink_to("/dev/zero")
    refused("got a symbolic link")
    os.mkfifo(path)
    refused("expected a regular file")
    path.mkdir()
    with pytest.raises(FileError, match=r"expected a re(adable|gular) file"):
        load_policy(path / "..")
    path.rmdir()
    with socket.socket(socket.AF_UNIX) as plug, contextlib.chdir(tmp_path):
        plug.bind(path.name)
    refused("expected a readable file, got No such device")
    with path.open("wb") as file:
        file.write(original)
        file.truncate(64 << 30)  # a hole: no disk is used
    refused("expected at most")
    with pytest.raises(FileError, match="No such file"):
        load_policy(path)
    with pytest.raises(FileError, match="expected a regular file"):
        load_policy(Path("/dev/zero"))


def test_every_mutation_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, 100, a_state(100), versions=VERSIONS)
    original = path.read_bytes()
    other = pack(CHECKPOINT, LARGEST[CHECKPOINT], {"step": 100, "versions": {}, "state": {}})
    assert_whole(load_checkpoint(path))
    generator = np.random.default_rng(1)
    for k in range(400):
        data = bytearray(original)
        at = int(generator.integers(len(data)))
        match k % 4:
            case 0:
                data[at] ^= 1 << int(generator.integers(8))
            case 1:
                del data[at:]
            case 2:
                data[at : at + 16] = bytes(16)
            case 3:
                data = bytearray(original[:at] + other[at:])
        path.write_bytes(data)
        if data not in (original, other):
            with pytest.raises(FileError) as caught:
                load_checkpoint(path)
            assert str(caught.value).startswith(f"{path}: ")
            assert "\n" not in str(caught.value)
