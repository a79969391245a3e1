"""The README and the pages in docs: their code runs, their commands run, their numbers hold."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from types import ModuleType

import numpy as np
import pytest
import torch

import rlpg
from rlpg import cli
from rlpg.cli.parsing import known_kinds
from rlpg.engine.shipped import agent_for, results_of, shipped_agents
from rlpg.gradients.baselines import STATISTICAL
from rlpg.gradients.returns import reward_to_go
from rlpg.learners.settings import AGENTS
from rlpg.rollouts import Episodes, Rollout
from rlpg.runs.recipe import SYNONYMS, Recipe, flatten

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "examples/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
README = (ROOT / "README.md").read_text()

SHORT = [
    "--total-steps", "300", "--rollout.num-envs", "4", "--evaluation.episodes", "2",
    "--evaluation.final-episodes", "2", "--evaluation.every", "150",
]  # fmt: skip
BUDGET = re.compile(r"((?:total_steps=|env_steps < ))\d[\d_]*_000\b")
FILE = re.compile(r"# (\w+\.py)\n")
OF_THE_PAGE = {"learner.kl_coef"}  # a setting of the learner that docs/your_own_parts.md defines
INLINE = re.compile(r"`(rlpg [a-z-]+[^`]*)`")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def shell_lines(page: Path) -> list[str]:
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0] for line in lines if line.startswith("rlpg ")]


def named(page: Path) -> str:
    return page.name


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, whose modules can be imported and are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) == str(tmp_path / f"{name}.py"):
            del sys.modules[name]


def run_page(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the Python and shell blocks of a page from top to bottom.

    A block that begins with `# name.py` is that file (or more of it). Budgets are shortened.
    """
    module = ModuleType(page.stem)  # dataclasses look for the module of their annotations
    monkeypatch.setitem(sys.modules, page.stem, module)
    names = vars(module)
    found = re.findall(r"```(python|sh)\n(.*?)```", page.read_text(), flags=re.DOTALL)
    for _, code in found:
        if file := FILE.match(code):
            with (folder / file[1]).open("a") as shown:
                shown.write(code)
    for language, code in found:
        if FILE.match(code):
            continue
        if language == "python":
            short = BUDGET.sub(r"\g<1>300", code)
            exec(compile(short, page.name, "exec"), names)
        else:
            for line in code.replace("\\\n", " ").splitlines():
                run_line(line.partition(" #")[0])


def run_line(line: str) -> None:
    """Run one line of a shell block in this process, if it is ours; training is shortened."""
    if not line.startswith("rlpg "):
        return
    words = shlex.split(line)[1:]
    if words[0] == "train":
        for option, value in zip(SHORT[::2], SHORT[1::2], strict=True):
            if option in words:
                words[words.index(option) + 1] = value
            else:
                words += [option, value]
        if "--seeds" in words and "--jobs" not in words:
            words += ["--jobs", "1"]  # a process takes longer to start than such a run
    elif words[0] == "resume" and "--total-steps" in words:
        words[words.index("--total-steps") + 1] = "600"
    elif words[0] == "check-env" and "--steps" not in words:
        words += ["--steps", "200"]
    elif words[0] in ("evaluate", "diagnose") and "--help" not in words:
        if "--episodes" in words:
            del words[words.index("--episodes") :][:2]
        words += ["--episodes", "8"]
    assert cli.main(words) == 0, line


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "(?:python|sh)")], ids=named)
def test_the_code_and_the_commands_of_every_page_run(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_page(page, folder, monkeypatch)


def test_the_readme_is_run() -> None:
    assert len(shell_lines(ROOT / "README.md")) >= 9
    assert len(blocks(ROOT / "README.md", "python")) == 3


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_commands_that_a_page_names_exist(page: Path) -> None:
    """Every `rlpg verb --option` in running text and in blocks: the verb and its options exist."""
    text = page.read_text()
    code = re.findall(r"^(?:    |\$ )(rlpg .*)$", text, flags=re.MULTILINE)
    for line in [*INLINE.findall(text), *shell_lines(page), *code]:
        words = line.replace("\n", " ").split()[1:]
        if words[0].startswith("--"):
            continue
        assert words[0] in cli.VERBS, line
        verb = cli.verb_class(words[0])
        known = {verb.key(name).removeprefix("--") for name in known_kinds(verb)}
        known |= {name.replace("_", "-") for name in known_kinds(verb)} | {"help", *verb.aliases}
        known |= {key.replace("_", "-") for key in OF_THE_PAGE}
        for word in words[1:]:
            option = word.removeprefix("--").partition("=")[0].replace("_", "-")
            table = ".".join(option.replace("-", "_").split(".")[:2])
            if word.startswith("--"):
                assert option in known or table in verb.free, f"{line}: {word}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_programs_and_files_that_a_page_names_exist(page: Path) -> None:
    pattern = r"\b((?:scripts|studies|tests|docs|rlpg|agents|envs)/[\w/.-]*\w\.(?:py|md|json|toml))"
    for name in re.findall(pattern, page.read_text()):
        assert (ROOT / name).exists(), f"{page.name}: {name}"
    for name in re.findall(r"`((?:\w+/)*test_\w+\.py)`", page.read_text()):
        where = ROOT if name.startswith("tests/") else ROOT / "tests"
        assert (where / name).exists(), f"{page.name}: {name}"


def test_the_numbers_of_reading_the_code_are_those_of_the_code() -> None:
    page = (ROOT / "docs/reading_the_code.md").read_text()
    refreshed = runpy.run_path(str(ROOT / "scripts/reading.py"))["refreshed"]
    text, total = refreshed(page)
    assert text == page, "run scripts/reading.py"
    assert len(re.findall(r"\.py` \| `[\w.]+` \| \d+ \|", page)) > 20
    assert total <= 700


def test_the_table_of_agents_has_their_defaults() -> None:
    """docs/learners.md: what differs from agent to agent."""
    page = (ROOT / "docs/learners.md").read_text()
    columns = [flatten(Recipe.of(name)) for name in AGENTS]
    header = "| setting | " + " | ".join(f"`{name}`" for name in AGENTS) + " |"
    table = page[page.index(header) :].split("\n\n")[0].splitlines()[2:]
    shown = {row.split("`")[1]: [cell.strip() for cell in row.split("|")[2:-1]] for row in table}
    differ = {k for column in columns for k, v in column.items() if v != columns[0].get(k, v)}
    assert differ - {"agent"} <= set(shown)
    for key, cells in shown.items():
        for cell, column in zip(cells, columns, strict=True):
            value = column.get(key, "-")
            assert cell == (str(value).lower() if isinstance(value, bool) else str(value)), key


def test_bug_the_tables_of_learners_left_a_schedule_out() -> None:
    page = (ROOT / "docs/learners.md").read_text()
    rows = re.findall(r"^\| `\w+`, `\w+_schedule` \|.*$", page, re.MULTILINE)
    assert len(rows) == 2
    assert all("`constant`" in row and "`linear`" in row and "`cooldown`" in row for row in rows)


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize(
    ("key", "value", "refusing"),
    [
        ("policy.memory", "gru", {"pathwise"}),
        ("policy.shared_torso", True, {"npg", "trpo", "pathwise"}),
        *(("learner.baseline", name, {"pathwise"}) for name in (*STATISTICAL, "linear")),
    ],
)
def test_bug_a_page_promised_of_every_agent_what_pathwise_refuses(
    agent: str, key: str, value: object, refusing: set[str], tmp_path: Path
) -> None:
    """docs/learners.md: memory, joint critics and baselines."""
    tiny = {"rollout.num_envs": 2, "environment.max_episode_steps": 5, "evaluation.episodes": 1,
            "evaluation.final_episodes": 1, "policy.hidden": (4,), key: value}  # fmt: skip
    refused = pytest.raises(rlpg.errors.UsageError) if agent in refusing else nullcontext()
    with refused:
        rlpg.train("rlpg/TorchPendulum-v1", agent, total_steps=20, run_dir=tmp_path / "run",
                   overrides=tiny, quiet=True)  # fmt: skip


def test_the_names_of_other_libraries_are_understood_as_the_page_says() -> None:
    page = (ROOT / "docs/coming_from.md").read_text()
    table = page.split("| SB3 | CleanRL |")[1].split("\n\n")[0].splitlines()[2:]
    known = {key for name in AGENTS for key in flatten(Recipe.of(name))}
    for row in table:
        *theirs, ours = (cell.strip(" `") for cell in row.strip("|").split("|"))
        assert ours in known, row
        for name in filter(None, theirs):
            assert name == ours.rpartition(".")[2] or SYNONYMS[name] == ours, f"{name}: {ours}"
    assert known >= set(SYNONYMS.values())


def test_the_versions_are_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == rlpg.__version__
    assert f"version: {rlpg.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {rlpg.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_how_to_contribute_is_short() -> None:
    """A baseline, a learner and an environment are under 40 lines each."""
    found = [block.count("\n") for block in blocks(ROOT / "CONTRIBUTING.md", "python")]
    assert len(found) >= 3
    assert max(found) < 40


def test_the_files_of_a_run_are_those_of_the_tables(tmp_path: Path) -> None:
    small = {"evaluation.episodes": 2, "evaluation.final_episodes": 2, "rollout.num_envs": 4}
    run = rlpg.train("CartPole-v1", total_steps=200, run_dir=tmp_path / "run", overrides=small)
    for page in (README, (ROOT / "docs/runs.md").read_text()):
        for path in run.path.iterdir():
            name = re.sub(r"\.\d+\.rlpg$", ".", path.name)
            is_named = f"`{name}" in page or name in ("run.lock", "evaluations_stochastic.npz")
            assert is_named, f"{name} is not in the table"


def test_the_results_in_the_readme_are_those_of_the_shipped_agents() -> None:
    section = README.partition("<!-- results")[2].partition("<!-- end of results")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines()[4:] if line]
    shown = {  # behind a comma, the arguments that the environment is made with
        env.partition(",")[0]: (agent, steps, int(number), float(middle))
        for env, agent, steps, number, middle, *_ in rows
    }
    found = {}
    for name in shipped_agents():
        results = results_of(name)
        assert results is not None
        env, agent = results["environment"], results["agent"]
        if agent_for(env) == agent:
            middle = median(row["mean"] for row in results["seeds"])
            digits = 2 if abs(middle) < 20 else 1
            steps, number = f"{results['total_steps']:,}", len(results["seeds"])
            found[env] = (agent, steps, number, round(middle, digits))
    assert shown == found


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_settings_named_in_the_documents_exist() -> None:
    known = {*flatten(Recipe()), *(key.rpartition(".")[2] for key in flatten(Recipe()))}
    known |= {key for name in AGENTS for key in flatten(Recipe.of(name))} | OF_THE_PAGE
    text = "".join(page.read_text() for page in PAGES)
    for key in re.findall(r"--([a-z]+\.[a-z_.-]+)", text):
        section, name = key.replace("-", "_").split(".")[:2]
        assert f"{section}.{name}" in known, key
    for key in re.findall(r"`(\w+\.[a-z_]+) = ", text):
        assert key in known, key


def test_a_learner_takes_30_lines_and_a_baseline_5() -> None:
    found = blocks(ROOT / "docs/your_own_parts.md", "python")
    learner = next(block for block in found if "(rlpg.Learner)" in block)
    baseline = next(block for block in found if "(rlpg.Baseline)" in block)
    sizes = [sum(map(bool, block.splitlines())) for block in (learner, baseline)]
    assert sizes[0] <= 30
    assert sizes[1] <= 5


def batch() -> Rollout:
    """The batch of docs/options.md: A is [1, 1, 1] and terminates, B is [4] and is cut off."""
    reward = torch.tensor([[1.0, 4.0], [1.0, 0.0], [1.0, 0.0]])  # [T, N]
    valid = torch.tensor([[True, True], [True, False], [True, False]])
    terminated = torch.tensor([[False, False], [False, False], [True, False]])
    truncated = torch.tensor([[False, True], [False, False], [False, False]])
    none = np.zeros(0, dtype=np.int64)
    return Rollout(
        obs=torch.zeros(4, 2, 1),
        action=torch.zeros(3, 2, dtype=torch.int64),
        log_prob=None,
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        valid=valid,
        time=torch.tensor([[0, 0], [1, 0], [2, 0]]),
        episode_start=torch.tensor([[True, True], [False, True], [False, False], [True, False]]),
        carry=None,
        final_obs=torch.zeros(1, 1),
        final_step=torch.tensor([0]),
        final_env=torch.tensor([1]),
        episodes=Episodes(none.astype(np.float64), none, none, none),
    )


def credit(**options: object) -> list[list[float]]:
    """Return-to-go and weight of A0, A1, A2, B0."""
    space = rlpg.make_envs("CartPole-v1", 1, seed=0).envs
    policy = rlpg.StandardPolicy(
        space.single_observation_space, space.single_action_space, generator=torch.Generator()
    )
    options = {"normalize_advantages": False, **options}
    learner = rlpg.Reinforce(policy, "none", gamma=0.5, **options)  # type: ignore[arg-type]
    found = learner.advantages(batch())
    return [[*part[:, 0].tolist(), part[0, 1].item()] for part in (found.returns, found.weight)]


def test_the_arithmetic_of_the_options() -> None:
    text = (ROOT / "docs/options.md").read_text()
    returns, steps = credit()
    assert returns == [1.75, 1.5, 1.0, 4.0]
    assert "| return-to-go | 1.75 | 1.5 | 1 | 4 |" in text
    assert steps == [0.25] * 4
    assert "| `steps` | 0.25 | 0.25 | 0.25 | 0.25 |" in text
    assert credit(average="episodes")[1] == [0.5] * 4
    assert "| `episodes` | 0.5 | 0.5 | 0.5 | 0.5 |" in text
    weights = [4 * weight for weight in credit(gamma_weight=True)[1]]
    assert weights == [1, 0.5, 0.25, 1]
    assert "`gamma_weight = true` | 1 | 0.5 | 0.25 | 1 |" in text
    assert credit(truncated_return="drop")[1] == [pytest.approx(1 / 3)] * 3 + [0.0]
    rollout, value = batch(), 10.0
    bootstrapped = reward_to_go(
        rollout.reward,
        gamma=0.5,
        bootstrap=torch.full((3, 2), value),
        terminated=rollout.terminated,
        truncated=rollout.truncated,
        valid=rollout.valid,
    )
    assert bootstrapped[0].tolist() == [1.75, 4 + 0.5 * value]
