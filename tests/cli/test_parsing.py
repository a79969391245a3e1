"""Every spelling that is understood, and every one that is answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlpg.cli import verb_class
from rlpg.cli.parsing import parse, read
from rlpg.cli.train import Train, parts
from rlpg.cli.verb import Verb
from rlpg.errors import UsageError
from rlpg.runs.recipe import flatten


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(*words: str) -> Train:
    verb = parse("train", Train, ["CartPole-v1", "--recipe", "default", *words])
    assert isinstance(verb, Train)
    return verb


def settings(*words: str) -> dict[str, object]:
    return flatten(train(*words).settings)


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        ("--total-steps 1_000_000", "total_steps", 1_000_000),
        ("--total_steps=1e6", "total_steps", 1_000_000),
        ("--learner.learning-rate 1e-3", "learner.learning_rate", 1e-3),
        ("--learner.learning_rate=1e-3", "learner.learning_rate", 1e-3),
        ("--learner.max-grad-norm none", "learner.max_grad_norm", None),
        ("--learner.gae-lambda auto", "learner.gae_lambda", "auto"),
        ("--learner.gae-lambda None", "learner.gae_lambda", None),
        ("--policy.hidden 64,64", "policy.hidden", (64, 64)),
        ("--policy.hidden 64 64", "policy.hidden", (64, 64)),
        ("--policy.hidden 1e2 32 8", "policy.hidden", (100, 32, 8)),
        ("--policy.hidden=64", "policy.hidden", (64,)),
        ("--policy.hidden=", "policy.hidden", ()),
        ("--learner.value-hidden 8 4", "learner.value_hidden", (8, 4)),
        ("--learner.value-hidden auto", "learner.value_hidden", "auto"),
        ("--policy.log-std-init -1", "policy.log_std_init", -1.0),
        ("--compile", "compile", True),
        ("--compile --seed 3", "compile", True),
        ("--compile False", "compile", False),
        ("--policy.normalize-observations false", "policy.normalize_observations", False),
        ("--policy.bernoulli=TRUE", "policy.bernoulli", True),
        ("--backend sync", "environment.backend", "sync"),
        ("--learner.gamma 0.5 --learner.gamma 0.6", "learner.gamma", 0.6),
        ("--environment.kwargs.is_slippery false", "environment.kwargs", {"is_slippery": False}),
        ("--environment.kwargs.map_name=8x8", "environment.kwargs", {"map_name": "8x8"}),
        ("--environment.kwargs.My-Size 3", "environment.kwargs", {"My-Size": 3}),
        ('--environment.kwargs.desc ["SF","FG"]', "environment.kwargs", {"desc": ["SF", "FG"]}),
        ("--environment.kwargs {a=1}", "environment.kwargs", {"a": 1}),
        ("--policy.network m:N --policy.network-kwargs.width 3", "policy.network_kwargs",
         {"width": 3}),
        ("--agent ppo --learner.clip-range 0.1", "learner.clip_range", 0.1),
        ("--learner.clip-range 0.1 --agent ppo", "learner.clip_range", 0.1),
    ],
)  # fmt: skip
def test_a_spelling_of_a_setting(words: str, key: str, value: object) -> None:
    found = settings(*words.split())[key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("words", ["--seeds 0 1", "--seeds 0,1", "--seeds=0,1", "--seeds [0,1]"])
def test_several_seeds(words: str) -> None:
    assert train(*words.split()).seeds == (0, 1)


def test_lists_end_where_a_word_is_no_number() -> None:
    verb = parse("train", Train, ["--seeds", "0", "1", "CartPole-v1", "--policy.hidden", "8", "4"])
    assert isinstance(verb, Train)
    assert (verb.env, verb.seeds, verb.settings.policy.hidden) == ("CartPole-v1", (0, 1), (8, 4))


@pytest.mark.parametrize(
    "words", ["--compile CartPole-v1", "--quiet CartPole-v1", "--import CartPole-v1"]
)
def test_a_switch_takes_no_word_that_is_not_its_own(words: str) -> None:
    verb = parse("train", Train, words.split())
    assert isinstance(verb, Train)
    assert verb.env == "CartPole-v1"


def test_a_folder_that_is_called_like_a_number_is_no_second_value() -> None:
    verb = parse("evaluate", verb_class("evaluate"), ["--episodes", "5", "0"])
    assert verb is not None
    assert (verb.values()["episodes"], verb.values()["source"]) == (5, Path("0"))


@pytest.mark.parametrize(
    ("words", "json", "video"),
    [
        ("", None, None),
        ("--video", None, Path("episode.mp4")),
        ("--json", Path("-"), None),
        ("--video --json a.json", Path("a.json"), Path("episode.mp4")),
        ("--video b.mp4 --json=a.json", Path("a.json"), Path("b.mp4")),
    ],
)
def test_an_option_whose_value_may_be_left_out(
    words: str, json: Path | None, video: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlpg.cli.verb.check_extra", lambda *_: None)
    verb = parse("evaluate", verb_class("evaluate"), ["run", *words.split()])
    assert verb is not None
    assert (verb.values()["json"], verb.values()["video"]) == (json, video)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--seed 1 --seeds 2 3", "--seeds: expected either --seed or --seeds, got both"),
        ("--seed 0 1", "--seed: expected one value, got 0 1; --seeds takes several"),
        ("--learner.gamma 0.9 0.8", "--learner.gamma: expected one value, got 0.9 0.8"),
        ("--seeds", "--seeds: expected a list, each entry an integer >= 0 or none, got nothing"),
        ("--run-dir", "--run-dir: expected a path or none, got nothing"),
        ("--policy.hidden", "--policy.hidden: expected a list, each entry an integer >= 1, got"),
        ("--quiet=yes", "--quiet: expected no value, got yes"),
        ("--run-dri x", "--run-dri: no such option; did you mean --run-dir?"),
        ("--settings x", "settings: no such setting; the sections are"),
        ("--typed x", "typed: no such setting"),
        ("word", "word: expected an option, got a word; see `rlpg train --help`"),
        ("-x", "-x: no such option; see"),
        ("--", "--: no such option; see"),
        (
            "--agent a2c --learner.clip-range 0.1",
            "learner.clip_range: no setting of the agent a2c; ppo",
        ),
        ("--agent ppo --learner.max-kl 1", "learner.max_kl: no setting of the agent ppo; npg and"),
        ("--agent trpo --learner.learning-rate 1", "no setting of the agent trpo; reinforce and"),
        ("--learner.baseline none --learner.gae-lambda 0.9", "auto, none or 1 with baseline none"),
        ("--policy.network-kwargs.a 1", "policy.network_kwargs: expected none without"),
        ("--n-steps 5", "n_steps: no such setting; did you mean rollout.num_steps?"),
        ("--ent-coef 0", "did you mean learner.entropy_coef?"),
        ("--lr 1", "did you mean learner.learning_rate?"),
        ("--total-timesteps 9", "did you mean total_steps?"),
        ("--agent a2c --clip-coef 0.2", "did you mean learner.clip_range (of the agent ppo)?"),
        ("--agent a2c --update-epochs 4", "did you mean learner.num_epochs (of the agent ppo)?"),
        ("--agent a2c --num_sgd_iter 4", "did you mean learner.num_epochs (of the agent ppo)?"),
        ("--policy.net_arch 8", "did you mean policy.hidden?"),
    ],
)
def test_what_is_not_understood_is_answered(words: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        train(*words.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["evaluate", "resume", "diagnose", "check-env"])
def test_a_verb_without_settings_names_its_own_options(name: str) -> None:
    with pytest.raises(UsageError, match=r"--epizodes: no such option|--total-stepps: no such"):
        parse(name, verb_class(name), ["x", "--total-stepps" if name == "resume" else "--epizodes"])
    with pytest.raises(UsageError, match=f"--zzz: no such option; see `rlpg {name} --help`"):
        parse(name, verb_class(name), ["x", "--zzz", "3"])


def test_the_name_of_a_free_entry_keeps_its_spelling() -> None:
    given = read(
        "train", Train, ["--environment.kwargs.a-b_C", "1", "--policy.network-kwargs.d-e=2"]
    )
    assert given.entries == {"environment.kwargs.a-b_C": "1", "policy.network_kwargs.d-e": "2"}


def test_a_verb_is_checked_where_python_makes_it_too() -> None:
    with pytest.raises(UsageError, match=r"^--seeds: expected seeds, each once, got \[1, 1\]$"):
        Train(env="CartPole-v1", seeds=(1, 1))
    with pytest.raises(UsageError, match=r"^--episodes: expected an integer >= 1, got 0$"):
        verb_class("evaluate")(episodes=0)  # type: ignore[call-arg]


def test_what_is_typed_may_be_imported_and_what_a_file_says_may_not() -> None:
    own = parts(train("--policy.network", "m:N", "--learner.baseline", "m:B").given, False)
    assert (own.network, own.baseline, own.agent) == ("m:N", "m:B", None)
    assert not own.import_modules
    assert parts({"learner.baseline": "value", "agent": "ppo"}, True).baseline is None
    Path("mine.toml").write_text("[policy]\nnetwork = 'm:N'\n")
    verb = parse("train", Train, ["CartPole-v1", "--recipe", "mine.toml"])
    assert isinstance(verb, Train)
    assert verb.settings.policy.network == "m:N"
    assert parts(verb.given, verb.import_modules).network is None


def test_the_agent_of_a_recipe_file_is_used_unless_another_is_named() -> None:
    Path("mine.toml").write_text("agent = 'ppo'\nseed = 3\n")
    assert isinstance(verb := parse("train", Train, ["A-v0", "--recipe", "mine.toml"]), Train)
    assert (verb.settings.agent, verb.settings.seed) == ("ppo", 3)
    words = ["A-v0", "--recipe", "mine.toml", "--agent", "trpo"]
    assert isinstance(verb := parse("train", Train, words), Train)
    assert (verb.settings.agent, verb.settings.seed) == ("trpo", 3)


def test_every_verb_is_one() -> None:
    from rlpg.cli import VERBS

    for name in VERBS:
        assert issubclass(verb_class(name), Verb)
