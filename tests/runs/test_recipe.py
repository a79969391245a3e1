import ast
import inspect
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpg.errors import FileError, RecipeError
from rlpg.learners.settings import AGENTS, LearnerSettings
from rlpg.runs.recipe import (
    EnvironmentSettings,
    Recipe,
    diff,
    dumps,
    flatten,
    load_recipe,
    loads,
    override,
)
from rlpg.settings import Settings

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
scalars = st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
positives = st.floats(0, exclude_min=True, allow_infinity=False)
counts = st.integers(1, 2**63)
changes = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**70),
        "total_steps": counts,
        "environment.id": texts,
        "environment.kwargs": st.dictionaries(texts, scalars | st.lists(scalars)),
        "environment.max_episode_steps": st.none() | counts,
        "policy.hidden": st.lists(st.integers(1, 900), max_size=64).map(tuple),
        "policy.log_std_floor": st.floats(allow_nan=False, allow_infinity=False),
        "learner.learning_rate": positives,
        "learner.gae_lambda": st.none() | st.just("auto") | st.floats(0, 1),
        "learner.max_grad_norm": st.none() | positives,
        "learner.truncated_return": st.sampled_from(["auto", "bootstrap", "drop"]),
    },
)


@given(changes)
def test_toml_round_trip_is_exact(typed):
    chosen = {k: v for k, v in typed.items() if not isinstance(v, str)}
    recipe = override(Recipe(environment=EnvironmentSettings(id="x")), chosen)
    again = loads(dumps(recipe))
    assert again == recipe
    assert repr(again) == repr(recipe)  # == calls 1, 1.0 and True equal, and -0.0 and 0.0
    assert override(Recipe(), flatten(recipe)) == recipe
    assert all(getattr(recipe, k) == v for k, v in chosen.items() if "." not in k)


@given(texts)
def test_any_string_survives_toml(text):
    recipe = Recipe(environment=EnvironmentSettings(id=text, kwargs={text: text}))
    assert loads(dumps(recipe)) == recipe


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("total_steps", "1_000_000", 1_000_000),
        ("total_steps", "1e6", 1_000_000),
        ("learner.learning_rate", "1e-3", 0.001),
        ("learner.gamma", "1", 1.0),
        ("learner.max_grad_norm", "none", None),
        ("learner.max_grad_norm", "2", 2.0),
        ("learner.gae_lambda", "None", None),
        ("learner.gamma_weight", "True", True),
        ("policy.hidden", "64,64", (64, 64)),
        ("policy.hidden", "32,", (32,)),
        ("policy.hidden", "[8, 4]", (8, 4)),
        ("policy.hidden", "", ()),
        ("environment.id", "none", "none"),
        ("environment.id", "12", "12"),
        ("environment.kwargs", "{a = 1, b = [0.7, inf]}", {"a": 1, "b": [0.7, math.inf]}),
        ("learner.truncated_return", "drop", "drop"),
    ],
)
def test_command_line_text(key, text, value):
    recipe = override(Recipe(), {key: text})
    assert flatten(recipe)[key] == value
    assert type(flatten(recipe)[key]) is type(value)


def test_one_entry_of_a_table_is_set_by_its_own_key():
    recipe = override(Recipe(), {"environment.kwargs.desc": '["SF", "FG"]'})
    recipe = override(recipe, {"environment.kwargs.is_slippery": "false"})
    assert recipe.environment.kwargs == {"desc": ["SF", "FG"], "is_slippery": False}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rollout.num_envs", 0, "rollout.num_envs: expected an integer >= 1, got 0"),
        ("rollout.num_envs", True, "rollout.num_envs: expected an integer >= 1, got True"),
        ("rollout.num_envs", 4.0, "rollout.num_envs: expected an integer >= 1, got 4.0"),
        ("rollout.num_envs", "4.5", "rollout.num_envs: expected an integer >= 1, got '4.5'"),
        ("total_steps", "1e999999999", "expected an integer >= 1, got '1e999999999'"),
        ("learner.gamma", 1.01, "learner.gamma: expected a number in [0, 1], got 1.01"),
        ("learner.gamma", math.nan, "learner.gamma: expected a number in [0, 1], got nan"),
        ("learner.learning_rate", "0", "learner.learning_rate: expected a number > 0, got 0.0"),
        (
            "learner.learning_rate",
            math.inf,
            "learner.learning_rate: expected a number > 0, got inf",
        ),
        (
            "learner.learning_rate",
            10**400,
            "learner.learning_rate: expected a number > 0, got 1000",
        ),
        ("learner.gamma_weight", 1, "learner.gamma_weight: expected true or false, got 1"),
        ("learner.max_grad_norm", -1, "expected a number > 0 or none, got -1"),
        ("learner.baseline", "critic", "expected one of none, moving_average, time_step,"),
        ("policy.hidden", [64, 0], "policy.hidden: expected a list, each entry an integer >= 1"),
        ("policy.hidden", 64, "policy.hidden: expected a list, each entry an integer >= 1, got 64"),
        ("environment.kwargs", {"a": {}}, "environment.kwargs: expected a table, each value"),
        ("environment.wrappers", "TimeLimit", "expected a table of tables, got 'TimeLimit'"),
        ("environment.kwargs.a", None, "environment.kwargs.a: expected a list"),
        ("rollout", 3, "rollout: expected a table, got 3"),
        ("rollout", {"num_envs": 3}, "rollout: expected settings one by one, as rollout.num_envs"),
        ("policy.hidden", np.array([8, 8]), "policy.hidden: expected a list"),
        ("rollout.num_env", 1, "rollout.num_env: no such setting; did you mean rollout.num_envs"),
        ("learner.num_envs", 1, "did you mean rollout.num_envs"),
        ("gamma", 1, "gamma: no such setting; did you mean learner.gamma?"),
        ("seed.x", 1, "seed.x: no such setting; did you mean seed"),
        ("learner.gamma.x", 1, "learner.gamma.x: no such setting"),
        ("zzz.qqq", 1, "zzz.qqq: no such setting; the sections are environment, policy, rollout"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(key, value, message):
    with pytest.raises(RecipeError) as caught:
        override(Recipe(), {key: value})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_numbers() -> None:
    """They were refused: `total_steps: expected an integer >= 1, got np.int64(700)`."""
    changes = {
        "total_steps": np.int64(700),
        "learner.gamma": np.float32(0.5),
        "policy.hidden": [np.int32(8), 8],
        "environment.kwargs": {"length": np.uint8(3)},
    }
    recipe = override(Recipe(), changes)
    assert loads(dumps(recipe)) == recipe
    assert (recipe.total_steps, recipe.learner.gamma, recipe.policy.hidden) == (700, 0.5, (8, 8))
    assert {type(recipe.total_steps), type(recipe.environment.kwargs["length"])} == {int}
    with pytest.raises(RecipeError, match=r"gamma: expected a number in \[0, 1\], got np.float32"):
        override(Recipe(), {"learner.gamma": np.float32(math.nan)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = ", "run.toml: Invalid value (at end of document)"),
        ("rollout = 3", "run.toml: rollout: expected a table, got 3"),
        ("[seed]\nx = 1", "run.toml: seed: expected an integer >= 0, got {'x': 1}"),
        ("[rollout]\nnum_envs = '4'", "run.toml: rollout.num_envs: expected an integer >= 1"),
        ("[rollout]\nnum_envs = 4.0", "run.toml: rollout.num_envs: expected an integer >= 1"),
        ("[rolout]\nnum_envs = 4", "run.toml: rolout: no such setting; did you mean rollout"),
        ("[learner]\nnum_envs = 4", "run.toml: learner.num_envs: no such setting; did you mean"),
        ("x = " + "[" * 100_000, "run.toml: "),
    ],
)
def test_a_file_is_judged_as_strictly(text, message):
    with pytest.raises(RecipeError) as caught:
        loads(text, source="run.toml")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "text",
    [
        "a" + ".a" * 100_000 + " = 1",
        "'a'" + " . 'a'" * 100_000 + " = 1",
        "[a" + ".a" * 100_000 + "]",
        "x = {a = '''b''''', " + "c." * 10_000 + "c = 1}",
        'x = {a = """b\\"""""", ' + "c." * 10_000 + "c = 1}",
        "# it's\n" + "c." * 10_000 + "c = 1",
    ],
    ids=lambda text: text[:12],
)
def test_a_key_with_many_dots_is_refused_before_it_takes_gigabytes(text):
    """tomllib takes memory with the square of the dots: 60 kB of them took 4 GB."""
    with pytest.raises(RecipeError, match="expected keys of at most 8 parts, got more"):
        loads(text)


@pytest.mark.parametrize("text", ["a" * 10**6, "a " * 500_000, '"\\' * 400_000, "'''" * 300_001])
def test_looking_for_such_keys_takes_no_time_with_the_square_of_the_length(text):
    with pytest.raises(RecipeError):
        loads(text)


def test_dots_in_values_and_quoted_keys_are_not_counted():
    dots = "a.b.c.d.e.f.g.h.i.j.k.l"
    recipe = override(Recipe(), {"environment.kwargs": {dots: dots, "quotes": "'''\"\"\"#"}})
    assert loads(dumps(recipe)) == recipe
    assert loads(f"# {dots}\n[environment]\nid = '''{dots}'''").environment.id == dots


def test_an_integer_of_thousands_of_digits_is_one_clear_line():
    """int() refused it with a ValueError that was no RecipeError."""
    with pytest.raises(RecipeError, match=r"^recipe: Exceeds the limit"):
        loads("seed = " + "9" * 5000)


def test_direct_construction_is_checked_and_normalized():
    assert LearnerSettings(gamma=1).gamma == 1.0
    assert isinstance(LearnerSettings(gamma=1).gamma, float)
    with pytest.raises(RecipeError, match=r"learner\.gamma: expected a number in \[0, 1\], got 2"):
        LearnerSettings(gamma=2)


def test_a_caller_keeps_no_hold_on_the_kwargs():
    kwargs = {"a": [1]}
    recipe = Recipe(environment=EnvironmentSettings(kwargs=kwargs))
    kwargs["a"].append(2)
    kwargs["b"] = 1
    assert recipe.environment.kwargs == {"a": [1]}


def test_save_load_diff(tmp_path):
    recipe = override(Recipe(), {"learner.learning_rate": 1e-4, "seed": 3})
    (tmp_path / "recipe.toml").write_text(dumps(recipe))
    assert load_recipe(tmp_path / "recipe.toml") == recipe
    assert diff(recipe, Recipe()) == {"seed": 3, "learner.learning_rate": 1e-4}
    with pytest.raises(FileError, match=r"nowhere\.toml: expected a readable file, got No such"):
        load_recipe(tmp_path / "nowhere.toml")
    (tmp_path / "latin.toml").write_bytes(b'agent = "\xe9"')
    with pytest.raises(FileError, match=r"latin\.toml: expected UTF-8 text"):
        load_recipe(tmp_path / "latin.toml")


def test_a_byte_order_mark_made_a_recipe_unreadable(tmp_path):
    """Some editors write one, and `\\r\\n` between lines."""
    file = tmp_path / "mine.toml"
    file.write_bytes("seed = 3\r\n[rollout]\r\nnum_envs = 2\r\n".encode("utf-8-sig"))
    assert load_recipe(file) == override(Recipe(), {"seed": 3, "rollout.num_envs": 2})


@pytest.mark.parametrize("agent", AGENTS)
def test_every_setting_has_a_help_text(agent):
    recipe = Recipe.of(agent)
    for table in (recipe, *(v for v in recipe.values().values() if isinstance(v, Settings))):
        helped = set()
        for owner in type(table).__mro__[:-1]:
            body = ast.parse(inspect.getsource(owner)).body[0].body
            for entry, text in itertools.pairwise(body):
                if isinstance(entry, ast.AnnAssign) and isinstance(text, ast.Expr):
                    helped.add(entry.target.id)
        tables = {name for name, v in recipe.values().items() if isinstance(v, Settings)}
        assert set(table.names()) - tables <= helped


def test_importing_recipes_adds_nothing_heavy():
    heavy = "{'torch', 'numpy', 'tensorboard', 'safetensors', 'gymnasium'}"
    code = "import sys, rlpg; before = set(sys.modules); import rlpg.runs.recipe; "
    code += f"assert not {heavy} & (set(sys.modules) - before)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_agent_keeps_what_was_said_and_has_its_own_defaults():
    said = override(Recipe(), {"learner.gamma": 0.9, "rollout.num_envs": 3, "seed": 5})
    other = override(said, {"agent": "ppo", "total_steps": 77})
    expected = {"learner.gamma": 0.9, "rollout.num_envs": 3, "seed": 5, "total_steps": 77}
    assert diff(other, Recipe.of("ppo")) == expected
    assert other.agent == "ppo"
    assert other.rollout.num_steps == Recipe.of("ppo").rollout.num_steps != said.rollout.num_steps


def test_the_agent_that_is_asked_for_replaces_the_one_that_a_recipe_names() -> None:
    """And has its own defaults, beside what the recipe says."""
    text = 'agent = "reinforce"\n[learner]\ngamma = 0.9\n'
    assert loads(text).agent == "reinforce"
    asked = loads(text, agent="ppo")
    assert asked == override(Recipe.of("ppo"), {"learner.gamma": 0.9})
