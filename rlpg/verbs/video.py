"""One episode as an mp4 film, through the environment's `rgb_array` frames."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from rlpg.engine.evaluator import Evaluation
from rlpg.engine.loading import Saved
from rlpg.errors import EnvironmentSetupError, UsageError
from rlpg.rollouts import find_spec
from rlpg.rollouts.ids import own_words, quietly
from rlpg.runs import files
from rlpg.verbs.evaluation import environment_of, evaluate

FRAMES_PER_SECOND = 30  # where the environment does not say
SMALLEST_LABELED = 120  # pixels of a picture's shorter side

Picture = np.ndarray[Any, Any]  # [height, width, 3] uint8
Show = Callable[[Picture], None]


def has_display() -> bool:
    """Whether an X or Wayland server is there to open windows on."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class Filmed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Hands every picture of the first whole episode to `show`, first and last state included."""

    def __init__(self, env: gymnasium.Env[Any, Any], show: Show) -> None:
        super().__init__(env)
        self._show = show
        self._first: Picture | None = None
        self._size: tuple[int, ...] | None = None  # a film has one
        self._over = False
        self._steps, self._return = 0, 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(seed=seed, options=options)
        if not self._over:
            self._steps, self._return = 0, 0.0
            self._first = self._picture()  # shown when a step follows: resets may come in a row
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        if not self._over:
            self._steps, self._return = self._steps + 1, self._return + float(result[1])
            if self._first is not None:
                self._show(self._first)
                self._first = None
            self._show(self._picture())
            self._over = bool(result[2] or result[3])
        return result

    def _picture(self) -> Picture:
        frame: Any = self.env.render()
        shape: tuple[int, ...] = frame.shape if isinstance(frame, np.ndarray) else ()
        if len(shape) != 3 or shape[2] not in (3, 4) or shape[:2] != (self._size or shape[:2]):
            expected = ", ".join(map(str, self._size or ("height", "width")))
            raise EnvironmentSetupError(
                f"video: expected pictures [{expected}, 3] from {self.env}, got "
                f"{list(shape) or type(frame).__name__}; render() has to return them"
            )
        self._size = shape[:2]
        picture = np.array(frame[:, :, :3], dtype=np.uint8, order="C")
        return labeled(picture, f"step {self._steps}   return {self._return:.1f}")


def labeled(picture: Picture, text: str) -> Picture:
    """The picture `[height, width, 3]` with a line of text in its upper left corner, in place.

    Without pygame, or where the picture is too small to read it, without the line.
    """
    try:
        import pygame.freetype
    except ImportError:
        return picture
    if min(picture.shape[:2]) < SMALLEST_LABELED:
        return picture
    pygame.freetype.init()
    size = max(12, picture.shape[0] // 25)
    drawn, place = pygame.freetype.Font(None, size).render(text, (0, 0, 0), (255, 255, 255))
    pixels = pygame.surfarray.array3d(drawn).swapaxes(0, 1)  # [height, width, 3]
    corner = picture[4 : 4 + place.height, 4 : 4 + place.width]
    corner[...] = pixels[: corner.shape[0], : corner.shape[1]]
    return picture


@contextmanager
def filming(path: Path, frames_per_second: float) -> Iterator[Show]:
    """What takes the pictures of an mp4 film. The film appears when it is complete."""
    from imageio_ffmpeg import count_frames_and_secs, write_frames

    unfinished = path.with_name(f".tmp-{path.stem}.mp4")
    writer: Any = None
    number = 0

    def show(picture: Picture) -> None:
        nonlocal writer, number
        if writer is None:
            size = picture.shape[1], picture.shape[0]
            writer = write_frames(
                str(unfinished), size, fps=frames_per_second, macro_block_size=2, quality=7
            )
            writer.send(None)
        with ffmpeg_writes(path):
            writer.send(picture)
        number += 1

    try:
        yield show
        writer.close()
        with ffmpeg_writes(path):  # its exit code is not told
            if count_frames_and_secs(str(unfinished))[0] != number:
                raise OSError
        unfinished.replace(path)
    finally:
        if writer is not None:
            writer.close()
        with suppress(FileNotFoundError):
            unfinished.unlink()


@contextmanager
def ffmpeg_writes(path: Path) -> Iterator[None]:
    """Makes what ffmpeg could not write one line; it has said why on the error stream."""
    try:
        yield
    except (OSError, RuntimeError):
        raise UsageError(
            f"video: expected {path} to be written, got an error of ffmpeg; make room for it"
        ) from None


@files.staying()
def film(
    saved: Saved,
    path: Path,
    *,
    env: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    deterministic: bool = True,
) -> Evaluation:
    """Film one episode of a policy from disk as an mp4 file, which is replaced if it exists; see
    `evaluate_saved` for the environment. UsageError where it gives no pictures."""
    path = files.here() / path  # the environment may go elsewhere
    if not has_display():  # pygame would look for one, and print errors
        for name in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):
            os.environ.setdefault(name, "dummy")
    with made_for_pictures(saved, "rgb_array", env, env_kwargs) as (original, cap):
        rate = original.metadata.get("render_fps") or FRAMES_PER_SECOND
        with filming(path, rate) as show:
            return evaluate(
                saved.policy, Filmed(original, show), 1, seed,
                deterministic=deterministic, episode_cap=cap,
            )  # fmt: skip


def watch(
    saved: Saved,
    *,
    env: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    episodes: int = 1,
    seed: int = 0,
    deterministic: bool = True,
) -> Evaluation:
    """Play episodes of a policy from disk in a window; see `evaluate_saved` for the environment.
    UsageError where there is no display, or the environment has no window."""
    if sys.platform.startswith("linux") and not has_display():
        raise UsageError(
            "watch: expected a display, got none; `rlpg evaluate RUN --video` films an episode"
        )
    with made_for_pictures(saved, "human", env, env_kwargs) as (original, cap):
        return evaluate(
            saved.policy, original, episodes, seed, deterministic=deterministic, episode_cap=cap
        )


@contextmanager
def made_for_pictures(
    saved: Saved, render_mode: str | None, env: str | None, env_kwargs: Mapping[str, Any] | None
) -> Iterator[tuple[gymnasium.Env[Any, Any], int]]:
    """The environment of a policy from disk in a render mode, if any, and its episodes' cap."""
    env_id, options, _ = environment_of(saved, env, env_kwargs)
    with own_words(env_id):
        spec, _ = find_spec(env_id)
        made = quietly(
            gymnasium.make,
            spec,
            max_episode_steps=options.get("max_episode_steps"),
            disable_env_checker=True,
            **options["kwargs"] | ({"render_mode": render_mode} if render_mode else {}),
        )
    with closing(made):
        if render_mode and render_mode not in made.metadata.get("render_modes", ()):
            what = "pictures" if render_mode == "rgb_array" else "a window"
            raise UsageError(f"video: expected an environment with {what}, {spec.id} has none")
        yield made, options["episode_cap"]
