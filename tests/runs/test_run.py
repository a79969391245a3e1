import contextlib
import errno
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))
from faulty import FaultyOs

from rlpg.errors import FileError, TrainingError, UsageError
from rlpg.runs import files
from rlpg.runs.recipe import EnvironmentSettings, Recipe, load_recipe, override
from rlpg.runs.run import create_run, find_policy, open_run, safe_name, versions
from rlpg.runs.store import save_policy

RECIPE = Recipe(environment=EnvironmentSettings(id="rlpg/Chain-v0"), seed=3)


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("env_id", "name"),
    [
        ("CartPole-v1", "CartPole-v1"),
        ("rlpg/Chain-v0", "rlpg-Chain-v0"),
        ("my.module:Id-v0", "my.module-Id-v0"),
        ("../../etc", "etc"),
        ("..", "environment"),
        ("", "environment"),
        ("a" * 500, "a" * 100),
        ("ALE/Pong\0\n", "ALE-Pong-"),
    ],
)
def test_environment_ids_become_harmless_names(env_id, name):
    assert safe_name(env_id) == name


def test_runs_are_numbered(tmp_path):
    paths = [create_run(RECIPE, {}, here=tmp_path).place for _ in range(3)]
    base = tmp_path / "runs" / "rlpg-Chain-v0" / "reinforce"
    assert paths == [base / "3", base / "3-1", base / "3-2"]


def test_what_a_new_run_holds(tmp_path):
    run = create_run(RECIPE, versions({"cpu": "AVX2"}), path=tmp_path / "a" / "run")
    assert everything(tmp_path / "a" / "run") == ["recipe.toml", "run.lock", "versions.json"]
    run = open_run(tmp_path / "a" / "run")
    assert load_recipe(run.recipe) == RECIPE
    found = json.loads((run.path / "versions.json").read_text())
    assert found["cpu"] == "AVX2"
    assert found["numpy"] == np.__version__
    assert {"python", "platform", "machine", "rlpg", "torch", "gymnasium"} <= found.keys()


def test_a_given_folder_must_be_new_or_empty(tmp_path):
    (tmp_path / "run").mkdir()
    create_run(RECIPE, {}, path=tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine").write_text("mine")
    for taken, got in (
        ("run", "one in use; .* `rlpg resume` it"), ("notes", "one in use;"),
        ("file", "a file or a link;"), ("link", "a file or a link;"),
    ):  # fmt: skip
        before = everything(tmp_path)
        with pytest.raises(UsageError, match=f"expected a folder that is new or empty, got {got}"):
            create_run(RECIPE, {}, path=tmp_path / taken)
        assert everything(tmp_path) == before


def test_an_error_with_lone_surrogates_is_kept(tmp_path):
    """A file name that is not UTF-8, in an exception's message, ended in a UnicodeEncodeError."""
    run = create_run(RECIPE, {}, path=tmp_path / "run")
    with pytest.raises(TrainingError, match="RuntimeError: no file"), run.held():
        raise RuntimeError("no file \udcff")
    assert "no file \\udcff" in (run.path / "error.log").read_text()


@pytest.mark.parametrize(
    ("env", "named"), [("CartPole-v1", ""), ("my_module:Mine-v0", " --env my_module:Mine-v0")]
)
def test_an_interrupt_says_how_to_go_on(tmp_path, env, named):
    """A file may not choose a module, so the command that was printed was refused."""
    recipe = override(RECIPE, {"environment.id": env})
    run = create_run(recipe, {}, path=tmp_path / "a run")
    with pytest.raises(KeyboardInterrupt) as stop, run.held():
        raise KeyboardInterrupt
    assert stop.value.__notes__ == [f"`rlpg resume '{tmp_path}/a run'{named}` goes on"]


def test_a_recipe_whose_budget_was_raised_says_so_as_often_as_it_was(tmp_path):
    """`recipe.toml` had the last budget only, and did not repeat a run of two."""
    run = create_run(RECIPE, {}, path=tmp_path / "run")
    first = RECIPE
    for step, total in ((100, 200), (150, 200), (200, 300)):
        recipe = override(first, {"total_steps": total})
        run.save_recipe(recipe, before=first, step=step)
        assert load_recipe(run.recipe) == recipe
        first = recipe
    comments = [line for line in run.recipe.read_text().splitlines() if line.startswith("#")]
    assert comments == [
        f"# trained to step 100 with total_steps = {RECIPE.total_steps}, then resumed with "
        "total_steps = 200: repeat both to repeat the run",
        "# trained to step 200 with total_steps = 200, then resumed with total_steps = 300: "
        "repeat both to repeat the run",
    ]


def test_a_run_created_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    make_folder, overtaken = files.make_folder, []

    def overtaken_once(folder):
        make_folder(folder)
        if not overtaken:
            overtaken.append(folder)
            (folder / "recipe.toml").write_text("theirs")

    monkeypatch.setattr(files, "make_folder", overtaken_once)
    run = create_run(RECIPE, {}, here=tmp_path)
    assert run.path.name == "3-1"
    assert (overtaken[0] / "recipe.toml").read_text() == "theirs"


@pytest.mark.parametrize("fault", ["ENOSPC", "interrupted"])
def test_a_run_that_could_not_be_created_is_made_by_the_next_start(tmp_path, monkeypatch, fault):
    for k in itertools.count():
        faulty = FaultyOs(fault, k)
        with monkeypatch.context() as patched:
            patched.setattr(files, "os", faulty)
            with contextlib.suppress(OSError, FileError, KeyboardInterrupt):
                create_run(RECIPE, {"a": "b"}, here=tmp_path / f"{k}")
        if faulty.operations <= k:
            break
        before = len(list(tmp_path.glob(f"{k}/runs/*/*/*/recipe.toml")))
        again = create_run(RECIPE, {"a": "b"}, here=tmp_path / f"{k}")
        assert again.path.name == ("3-1" if before else "3")
        with again.held():
            assert everything(again.place) == ["recipe.toml", "run.lock", "versions.json"]
        assert load_recipe(again.recipe) == RECIPE
    assert k > 20


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def refusing(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refusing)
    for place in ({"here": tmp_path}, {"path": tmp_path / "run"}):
        with pytest.raises(FileError, match="expected a file system with locks, got No locks av"):
            create_run(RECIPE, {}, **place)


def test_what_a_process_left_that_was_killed_while_it_made_a_run_is_gone_after_the_next_start(
    tmp_path,
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".tmp-recipe.toml-7").write_text("total_")
    (tmp_path / "run" / "versions.json").write_text("{}")
    (tmp_path / ".tmp-notes").write_text("mine")
    with create_run(RECIPE, {}, path=tmp_path / "run").held():
        pass
    assert everything(tmp_path) == [
        ".tmp-notes", "run", "run/recipe.toml", "run/run.lock", "run/versions.json",
    ]  # fmt: skip


def test_runs_that_begin_together_do_not_remove_each_others_folders(tmp_path):
    script = "import sys, pathlib; from rlpg.runs.run import create_run\n"
    script += "from rlpg.runs.recipe import Recipe\n"
    script += "for _ in range(12): create_run(Recipe(), {}, here=pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", script, str(tmp_path)]
    starters = [subprocess.Popen(command) for _ in range(4)]
    assert [starter.wait(250) for starter in starters] == [0] * 4
    runs = list((tmp_path / "runs" / "environment" / "reinforce").iterdir())
    assert sorted(run.name for run in runs) == sorted(["0", *(f"0-{k}" for k in range(1, 48))])


def test_the_policy_of_a_run(tmp_path):
    run = create_run(RECIPE, {}, path=tmp_path / "run")
    with pytest.raises(
        FileError, match=r"expected a run or a policy \(policy\.safetensors\), got neither"
    ):
        find_policy(run.path)
    save_policy(run.policy, {}, {})
    last = run.policy / "policy.safetensors"
    assert find_policy(run.path, "best") == find_policy(run.path, "last") == last
    run.best_policy.mkdir()  # a run that was killed between making the folder and filling it
    assert find_policy(run.path, "best") == last
    save_policy(run.best_policy, {}, {})
    assert find_policy(run.path, "best") == run.best_policy / "policy.safetensors"
    assert find_policy(run.path, "last") == last
    assert find_policy(run.policy) == find_policy(last) == last


def test_a_link_in_a_strangers_run_is_no_policy(tmp_path):
    run = create_run(RECIPE, {}, path=tmp_path / "run")
    save_policy(tmp_path / "elsewhere", {}, {})
    run.policy.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileError, match="got neither"):
        find_policy(run.path)


@pytest.mark.parametrize("name", ["checkpoints", "policy", "best_policy"])
def test_a_run_whose_folder_is_a_link_is_refused_before_anything_is_removed(tmp_path, name):
    """What was behind the link was cleaned, pruned and written to."""
    run = create_run(RECIPE, {}, path=tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".tmp-notes").write_text("mine")
    (run.path / name).symlink_to(tmp_path / "mine")
    refused = pytest.raises(FileError, match=f"{name}: expected a folder of the run, got a link")
    with refused, run.held():
        pass
    assert (tmp_path / "mine" / ".tmp-notes").read_text() == "mine"


def test_what_is_no_run_says_so(tmp_path):
    with pytest.raises(FileError, match=r"expected a run's folder with recipe\.toml, got none"):
        open_run(tmp_path)


def test_versions_are_strings_and_json(tmp_path):
    found = versions({"threads": 1})
    assert json.loads(json.dumps(found)) == found
    assert found["threads"] == "1"


def test_holding_a_run_removes_what_a_killed_process_left(tmp_path):
    run = create_run(override(RECIPE, {"seed": 0}), {}, path=tmp_path / "run")
    save_policy(run.policy, {}, {})
    run.checkpoints.mkdir()
    (run.checkpoints / ".tmp-step-000000100.safetensors-7").write_text("{")
    (run.policy / ".tmp-policy.safetensors-7").write_text("{")
    (tmp_path / "outside").write_text("mine")
    os.symlink(tmp_path / "outside", run.path / ".tmp-link")
    with run.held():
        pass
    assert everything(tmp_path) == [
        "outside",
        "run",
        "run/checkpoints",
        "run/policy",
        "run/policy/policy.safetensors",
        "run/recipe.toml",
        "run/run.lock",
        "run/versions.json",
    ]
