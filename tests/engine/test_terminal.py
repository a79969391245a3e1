"""The display: one line now and then, a bar on a terminal, and never a reason to stop."""

from __future__ import annotations

import io
import math
import sys

import pytest

from rlpg.engine import terminal
from rlpg.engine.terminal import Display, duration
from rlpg.errors import RlpgWarning

METRICS = {
    "rollout/ep_rew_mean": 12.34,
    "eval/mean_reward": 500.0,
    "time/env_share": 0.25,
    "time/policy_share": 0.25,
    "time/learn_share": 0.5,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Gone(Terminal):
    """A terminal that was closed."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")

    def flush(self) -> None:
        raise OSError(5, "Input/output error")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """`clock[0]` is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: now[0])
    return now


def test_durations() -> None:
    assert [duration(s) for s in (0, 61.9, 3599, 3723, 360_000)] == [
        "0:00", "1:01", "59:59", "1:02:03", "100:00:00",
    ]  # fmt: skip


def test_lines_come_every_half_minute_and_the_last_state_once(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Display("title", total_steps=1000, notes=("a note", "")) as display:
        for step in range(100, 1001, 100):
            clock[0] += 6.0
            display.update(step, METRICS)
            display.update(step, METRICS)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "a note"
    assert [line.split("/")[0].split()[-1] for line in lines[1:]] == ["100", "600", "1,000"]
    assert lines[2] == (
        "title    600/1,000 steps  return 12.3  evaluated 500.0  17 steps/s  0:24 left"
    )


def test_where_the_time_goes_and_the_losses_are_for_developers(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    losses = {"train/entropy": 0.5, "gradient/norm": 0.25, "train/value_loss": 12345.678}
    with Display("title", total_steps=1000, verbose=True) as display:
        clock[0] += 1.0
        display.update(100, METRICS | losses)
    lines = capsys.readouterr().err.splitlines()
    assert "time: env 25 %, policy 25 %, learn 50 %" in lines[0]
    assert [line.split() for line in lines[1:]] == [
        ["entropy", "0.5", "norm", "0.25"],
        ["value_loss", "1.235e+04"],
    ]


def test_several_runs_show_it_too(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`-v` did nothing where several seeds train."""
    for is_terminal in (False, True):
        screen = Terminal() if is_terminal else io.StringIO()
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        for verbose in (False, True):
            with Display("seed 0", "seed 1", total_steps=1000, verbose=verbose) as display:
                display.begin(0, "seed 1")
                clock[0] += 1.0
                display.update(100, METRICS | {"train/entropy": 0.125}, "seed 1")
                display.update(200, METRICS | {"train/entropy": 0.125}, "seed 1")
            shown = screen.getvalue()
            assert ("time: env 25 %, policy 25 %, learn 50 %" in shown) == verbose
            assert ("entropy      0.125" in shown) == verbose
            assert "seed 1    200/1,000 steps" in shown


def test_a_resumed_run_counts_its_own_steps(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Display("title", total_steps=1000) as display:
        display.begin(500)
        clock[0] += 1.0
        display.update(600, {})
    assert "100 steps/s  0:04 left" in capsys.readouterr().err


def test_each_trial_of_a_sweep_counts_its_own_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """The tenth run of a process was shown with a tenth of its speed."""
    with Display("process 0", "process 1", total_steps=1000) as display:
        for done in (0, 500, 0):
            clock[0] += 10.0
            display.begin(done, "process 1")
            clock[0] += 1.0
            display.update(done + 100, {}, "process 1")
    assert capsys.readouterr().err.endswith("100/1,000 steps  100 steps/s  0:09 left\n")


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with Display("title", total_steps=10, notes=("a note",), quiet=True) as display:
        display.update(10, METRICS)
        display.line("a line")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_terminal_shows_everything_at_any_width(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    title = "CartPole-v1 reinforce seed 0"
    with Display(title, total_steps=1000, notes=("a note",), verbose=True) as display:
        display.update(600, METRICS)
        display.line("[a] line with [brackets]")
    shown = screen.getvalue()
    for part in ("a note", "600/1,000", "evaluated", "learn 50 %", "left", "[a] line with [br"):
        assert part in shown


@pytest.mark.parametrize("kind", ["dumb", "unknown"])
def test_a_terminal_that_cannot_redraw_showed_nothing_until_the_end(
    kind: str, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emacs' shell; TERM is unknown in some containers."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", kind)
    with Display("title", total_steps=1000) as display:
        display.update(100, METRICS)
        assert "title    100/1,000 steps" in screen.getvalue()
        clock[0] += 31.0
        display.update(600, METRICS)
        assert "600/1,000 steps  return 12.3" in screen.getvalue()


def test_a_log_held_every_frame_of_the_bar_where_colors_are_forced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As some services for continuous integration do: 600 MB in a week."""
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Display("title", total_steps=1000) as display:
        display.update(100, METRICS)
        display.update(200, METRICS)
    lines = screen.getvalue().splitlines()
    assert [line.partition("/")[0] for line in lines] == ["title    100", "title    200"]


def test_a_metric_with_a_long_name_ran_into_the_number_before_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """ "nanvariance_removed_by_baseline"."""
    losses = {
        "gradient/signal_to_noise": math.nan, "gradient/variance_removed_by_baseline": 0.897,
    }  # fmt: skip
    with Display("title", total_steps=1000, verbose=True) as display:
        display.update(100, METRICS | losses)
    assert capsys.readouterr().err.split()[-4:] == [
        "signal_to_noise", "nan", "variance_removed_by_baseline", "0.897",
    ]  # fmt: skip


@pytest.mark.parametrize("broken", [Gone(), None])
def test_losing_the_terminal_stops_nothing(
    broken: Terminal | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal() if broken is None else broken
    monkeypatch.setattr(sys, "stderr", stream)
    with Display("title", total_steps=10, notes=("a note",)) as display:
        if broken is None:  # it goes away later
            monkeypatch.setattr(stream, "write", Gone().write)
            monkeypatch.setattr(stream, "flush", Gone().flush)
        display.update(5, METRICS)
        display.line("a line")
        display.update(10, METRICS)


def test_a_process_without_an_error_stream_could_not_train(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with Display("title", total_steps=10, notes=("a note",)) as display:
        clock[0] += 100.0
        display.update(5, METRICS)


def test_a_quiet_display_warns_in_python_and_another_one_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With `quiet`, nobody was told that the bits may differ or that nothing could be saved."""
    with pytest.warns(RlpgWarning, match=r"^the disk is full$"):
        Display("title", total_steps=100, quiet=True).warn("the disk is full")
    assert capsys.readouterr().err == ""
    Display("title", total_steps=100).warn("the disk is full")
    assert capsys.readouterr().err == "the disk is full\n"
