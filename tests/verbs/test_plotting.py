"""Curves of several runs: grouped, averaged, drawn."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlpg.cli import main
from rlpg.errors import UsageError
from rlpg.verbs import plotting

STEPS = [100, 200, 300]


def run(
    root: Path, env: str, agent: str, seed: int, values: list[float], steps: list[int] = STEPS,
    learner: str = "gamma = 0.9", tag: str = "eval/mean_reward",
) -> Path:  # fmt: skip
    path = root / env / agent / str(seed)
    path.mkdir(parents=True)
    recipe = f'agent = "{agent}"\nseed = {seed % 10}\n[environment]\nid = "{env}"\n[learner]\n'
    (path / "recipe.toml").write_text(recipe + learner)
    rows = [
        {"step": step, "time/fps": 50, tag: value}
        for step, value in zip(steps, values, strict=True)
    ]
    (path / "progress.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in range(4):
        run(tmp_path, "A-v0", "ppo", seed, [0.0, 5.0, 10.0 * seed])
        run(tmp_path, "A-v0", "a2c", seed, [1.0, 2.0, 3.0])
    run(tmp_path, "B-v0", "ppo", 0, [1.0, 2.0, 4.0])
    return tmp_path


def test_seeds_become_an_interquartile_mean_with_an_interval(runs: Path) -> None:
    compared = plotting.compare([runs])
    assert compared.envs == ["A-v0", "B-v0"]
    assert compared.labels == ["a2c", "ppo"]
    assert compared.notes == ()
    group = compared.on("A-v0")[1]
    assert group.x.tolist() == STEPS
    assert group.center.tolist() == [0.0, 5.0, 15.0]  # of 0, 10, 20, 30 the middle half
    low, high = group.interval[:, 2]
    assert 0 <= low < 10 < 20 < high <= 30
    assert group.interval[0, 1] == group.interval[1, 1] == 5.0
    (single,) = compared.on("B-v0")
    assert single.interval.tolist() == [[1.0, 2.0, 4.0]] * 2


def test_a_setting_that_no_run_has_was_called_unknown(runs: Path) -> None:
    with pytest.raises(UsageError, match=r"a setting in recipe.toml, got learner\.gama$"):
        plotting.compare([runs], by="learner.gama")


def test_a_flat_curve_lay_on_the_axis_between_two_equal_numbers(tmp_path: Path) -> None:
    run(tmp_path, "Flat-v0", "ppo", 0, [500.0, 500.0, 500.0])
    picture = plotting.chart(plotting.compare([tmp_path])).splitlines()[1 : plotting.HEIGHT + 1]
    assert [line for line in picture if line.strip(" |")] == [f"       500 |{'*' * plotting.WIDTH}"]
    assert len(picture[0].strip()) == len(picture[-1].strip()) == 1


def test_time_is_that_of_training(runs: Path) -> None:
    compared = plotting.compare([runs / "B-v0"], axis="time")
    assert compared.groups[0].x.tolist() == [2.0, 4.0, 6.0]  # 50 steps a second


def test_runs_measured_at_other_places_are_compared_where_all_have_values(tmp_path: Path) -> None:
    run(tmp_path, "A-v0", "ppo", 0, [0.0, 3.0], [100, 400])
    run(tmp_path, "A-v0", "ppo", 1, [5.0, 5.0], [200, 300])
    compared = plotting.compare([tmp_path])
    (group,) = compared.groups
    assert (group.x[0], group.x[-1], len(group.x)) == (200, 300, plotting.POINTS)
    assert group.center[[0, -1]].tolist() == pytest.approx([3.0, 3.5])  # means of 1, 5 and 2, 5
    assert compared.notes == ("ppo on A-v0: drawn to step 300, where its shortest curve ends",)


@pytest.mark.parametrize("ends", [(300, 900), (900, 300)])
def test_bug_no_note_on_an_early_end_where_the_first_of_runs_without_times_was_the_shortest(
    tmp_path: Path, ends: tuple[int, int]
) -> None:
    for k, end in enumerate(ends, start=1):
        (tmp_path / "ppo" / f"A-v0_{k}").mkdir(parents=True)
        steps = np.arange(100, end + 1, 100)
        file = tmp_path / "ppo" / f"A-v0_{k}" / "evaluations.npz"
        np.savez(file, timesteps=steps, results=np.ones((len(steps), 2)))
    (note,) = plotting.compare([tmp_path]).notes
    assert note == "ppo on A-v0: drawn to step 300, where its shortest curve ends"


def test_runs_that_share_no_place_are_refused(tmp_path: Path) -> None:
    run(tmp_path, "A-v0", "ppo", 0, [0.0], [100])
    run(tmp_path, "A-v0", "ppo", 1, [0.0], [200])
    for by in ("agent", "folder"):  # "--by folder draws them apart" was not true of one folder
        said = r"steps in common, got \S+1, which begins at 200, and \S+0, which ends at 100; leave"
        with pytest.raises(UsageError, match=said):
            plotting.compare([tmp_path], by=by)
    paths = [tmp_path / "A-v0" / "ppo" / seed for seed in ("0", "1")]
    assert len(plotting.compare(paths, by="folder").groups) == 2


def test_runs_with_other_settings_are_told_apart(tmp_path: Path) -> None:
    run(tmp_path, "A-v0", "ppo", 0, [0.0] * 3)
    run(tmp_path, "A-v0", "ppo", 1, [1.0] * 3, learner="gamma = 0.5")
    (note,) = plotting.compare([tmp_path]).notes
    assert note == (
        "ppo on A-v0: runs differ in learner.gamma; --by learner.gamma draws them apart"
    )
    compared = plotting.compare([tmp_path], by="learner.gamma")
    assert compared.labels == ["ppo, learner.gamma = 0.9", "ppo, learner.gamma = 0.5"]
    assert compared.notes == ()


def test_the_same_seed_twice_is_said_and_the_same_run_twice_counts_once(tmp_path: Path) -> None:
    first = run(tmp_path, "A-v0", "ppo", 0, [0.0] * 3)
    assert len(plotting.compare([first, tmp_path]).groups[0].runs) == 1
    (tmp_path / "link").symlink_to(first)
    assert len(plotting.compare([first, tmp_path / "link"]).groups[0].runs) == 1  # it was 2
    run(tmp_path, "A-v0", "ppo", 10, [1.0] * 3)  # of seed 0, too
    assert "have the same seed" in plotting.compare([tmp_path]).notes[0]


@pytest.mark.parametrize("tag", [None, "train/entropy"])
def test_one_run_that_has_just_begun_or_failed_at_once_was_the_end_of_the_plot_of_all(
    tag: str | None, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = run(runs / "new", "A-v0", "ppo", 5, [], [])
    first_entries = run(runs / "new", "A-v0", "ppo", 6, [1.0], [50], tag="train/entropy")
    words = ["plot", str(runs), "--metric", "eval/mean_reward"] if tag else ["plot", str(runs)]
    if tag:
        (first_entries / "progress.jsonl").unlink()  # it lacks the metric, which is refused
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        f"note: {path}: left out, as it has nothing to draw yet"
        for path in [begun, *([] if tag else [first_entries])]
    ]
    assert "4 runs, 300 steps" in out
    assert main(["plot", str(begun)]) == 2
    assert "expected evaluations or episodes that ended" in capsys.readouterr().err


def test_without_evaluations_the_training_return_is_drawn(tmp_path: Path) -> None:
    run(tmp_path, "A-v0", "ppo", 0, [0.0] * 3, tag="rollout/ep_rew_mean")
    assert plotting.compare([tmp_path]).metric == "rollout/ep_rew_mean"
    run(tmp_path, "A-v0", "ppo", 1, [0.0] * 3)
    with pytest.raises(UsageError, match="expected evaluations or episodes that ended in every"):
        plotting.compare([tmp_path])
    with pytest.raises(UsageError, match=r"expected the metric x, got .*rollout/ep_rew_mean"):
        plotting.compare([tmp_path], metric="x")


def test_the_probability_of_improvement_is_of_shared_environments(runs: Path) -> None:
    ((first, second, value, (low, high)),) = plotting.improvements(plotting.compare([runs]))
    assert (first, second) == ("a2c", "ppo")
    assert value == 0.25  # 3 is better than 0 only, of 0, 10, 20, 30
    assert 0 <= low < value < high <= 1
    with pytest.raises(UsageError, match="expected two agents on the same environment"):
        plotting.improvements(plotting.compare([runs / "B-v0"]))


def test_the_command_prints_curves_and_a_table(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plot", str(runs / "A-v0"), str(runs / "B-v0")]) == 0
    lines = capsys.readouterr().out.splitlines()
    picture = [line for line in lines if "|" in line]
    assert len(picture) == 2 * plotting.HEIGHT
    assert picture[0].startswith("        15 |")
    assert picture[0].endswith("o")  # ppo ends highest
    assert picture[plotting.HEIGHT - 1].startswith("         0 |o")  # and begins lowest
    assert "  * a2c        3.00 [3.00, 3.00], 4 runs, 300 steps" in lines
    assert "  * ppo        4.00 no interval, 1 run, 300 steps" in lines


@pytest.mark.parametrize("kind", ["curves", "profiles", "improvement"])
@pytest.mark.parametrize(
    ("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_the_command_draws_files(
    runs: Path, tmp_path: Path, kind: str, suffix: str, magic: bytes
) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"a.{suffix}"
    assert main(["plot", str(runs), "--output", str(path), "--kind", kind]) == 0
    assert path.read_bytes().startswith(magic)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "plot: expected RUN|FOLDER..., got nothing"),
        (".", "expected a run or a folder with runs in it, got neither"),
        (". --output a.gif", "--output: expected a file that ends in .png, .svg, .pdf, got a.gif"),
        (". --output no/a.png", "--output: expected a file in a folder that exists"),
        (". --kind pie", "kind: expected one of curves, improvement, profiles"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(
    words: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["plot", *words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_a_missing_extra_is_found_first(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["plot", str(runs), "--output", "a.png"]) == 2
    out, err = capsys.readouterr()
    assert (out, ".[plot]" in err) == ("", True)


def test_a_path_may_have_a_comma(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "lr 0.1,0.2"
    run(root, "A-v0", "ppo", 0, [1.0] * 3)
    assert main(["plot", str(root)]) == 0


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were saved."""
    figures = pytest.importorskip("matplotlib.figure")
    found: list[Any] = []
    save = figures.Figure.savefig

    def saved(figure: Any, *args: Any, **options: Any) -> None:
        found.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(figures.Figure, "savefig", saved)
    return found


@pytest.mark.parametrize("kind", ["curves", "profiles", "improvement"])
def test_names_of_folders_were_read_as_formulas_or_left_out_of_the_legend(
    kind: str, drawn: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["$cost^$", "_new", "a$b"]
    for name in names:
        run(Path(name), "A-v0", "ppo", 0, [1.0, 2.0, 3.0])
    assert main(["plot", *names, "--by", "folder", "--output", "a.svg", "--kind", kind]) == 0
    legends = [text.get_text() for each in drawn[0].legends for text in each.get_texts()]
    assert [text.strip() for text in legends] == [
        f"{name} (1)" for name in names if kind != "improvement"
    ]


@pytest.mark.parametrize("steps", [[[100]], [[100], [100]], [[100, 200], [100]]])
def test_a_curve_of_one_point_was_an_empty_picture(
    steps: list[list[int]], drawn: list[Any], tmp_path: Path
) -> None:
    for seed, own in enumerate(steps):
        run(tmp_path, "A-v0", "ppo", seed, [10.0 * seed + 1.0] * len(own), own)
    assert main(["plot", str(tmp_path), "--output", str(tmp_path / "a.png")]) == 0
    (axes,) = drawn[0].axes
    assert [line.get_marker() for line in axes.lines] == ["o"]
    assert axes.lines[0].get_xydata().tolist() == [[100.0, 5.0 * len(steps) - 4.0]]
    (band,) = axes.collections
    assert [y for _, y in band.get_segments()[0]] == [1.0, 10.0 * len(steps) - 9.0]


def test_a_legend_of_long_names_was_cut_off(drawn: list[Any], tmp_path: Path) -> None:
    names = [str(tmp_path / f"{k}{'0' * length}") for k, length in enumerate((20, 20, 20, 99))]
    for name in names:
        run(Path(name), "A-v0", "ppo", 0, [1.0, 2.0, 3.0])
    path = tmp_path / "a.png"
    assert main(["plot", *names, "--by", "folder", "--output", str(path)]) == 0
    needed = drawn[0].legends[0].get_window_extent()
    image = pytest.importorskip("matplotlib.image").imread(path)
    assert image.shape[1] > 0.9 * 150 * needed.width / drawn[0].dpi  # pixels, up to hinting
    assert main(["plot", *names[:3], "--by", "folder", "--output", str(path)]) == 0
    assert drawn[1].legends[0]._ncols == 1


def test_files_of_stable_baselines3_are_read(tmp_path: Path) -> None:
    gymnasium = pytest.importorskip("gymnasium")
    monitor = pytest.importorskip("stable_baselines3.common.monitor")
    env = monitor.Monitor(gymnasium.make("CartPole-v1"), str(tmp_path / "ppo" / "0"))
    lengths = []
    for episode in range(3):
        env.reset(seed=episode)
        is_over, length = False, 0
        while not is_over:
            is_over, length = env.step(0)[2], length + 1
        lengths.append(length)
    env.close()
    (group,) = plotting.compare([tmp_path]).groups
    assert (group.env, group.label) == ("CartPole-v1", tmp_path.name)
    assert group.x.tolist() == np.cumsum(lengths).tolist()
    assert group.final.tolist() == pytest.approx([np.mean(lengths)])
