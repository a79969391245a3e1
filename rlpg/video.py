"""One episode as an mp4 film, through the environment's `rgb_array` frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from rlpg.errors import EnvironmentSetupError, UsageError, install
from rlpg.evaluation import Evaluation, environment_of, evaluate
from rlpg.loading import Saved
from rlpg.rollouts import find_spec
from rlpg.rollouts.ids import own_words

FRAMES_PER_SECOND = 30  # where the environment does not say


class Filmed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Hands every picture of the first whole episode to `show`, first and last state included."""

    def __init__(
        self, env: gymnasium.Env[Any, Any], show: Callable[[np.ndarray[Any, Any]], None]
    ) -> None:
        super().__init__(env)
        self._show = show
        self._first: np.ndarray[Any, Any] | None = None
        self._over = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """The environment's own reset."""
        result = self.env.reset(seed=seed, options=options)
        if not self._over:
            self._first = self._picture()  # shown when a step follows: resets may come in a row
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """The environment's own step."""
        result = self.env.step(action)
        if not self._over:
            if self._first is not None:
                self._show(self._first)
                self._first = None
            self._show(self._picture())
            self._over = bool(result[2] or result[3])
        return result

    def _picture(self) -> np.ndarray[Any, Any]:
        frame: Any = self.env.render()
        if not isinstance(frame, np.ndarray) or frame.ndim != 3:
            raise EnvironmentSetupError(
                f"video: expected pictures [height, width, 3] from {self.env}, got "
                f"{type(frame).__name__}; it has no render_mode rgb_array"
            )
        return np.ascontiguousarray(frame[:, :, :3], dtype=np.uint8)


class Film:
    """An mp4 file that appears when the film is complete; an error leaves none."""

    def __init__(self, path: Path, frames_per_second: float) -> None:
        try:
            import imageio_ffmpeg
        except ImportError:
            raise UsageError(
                f"video: expected imageio-ffmpeg to be installed; run {install('video')}"
            ) from None
        self._ffmpeg = imageio_ffmpeg
        self._path, self._rate = path, frames_per_second
        self._unfinished = path.with_name(f".tmp-{path.stem}.mp4")
        self._writer: Any = None

    def show(self, frame: np.ndarray[Any, Any]) -> None:
        """Add a picture, `[height, width, 3]` uint8."""
        if self._writer is None:
            size = frame.shape[1], frame.shape[0]
            self._writer = self._ffmpeg.write_frames(
                str(self._unfinished), size, fps=self._rate, macro_block_size=2, quality=7
            )
            self._writer.send(None)
        self._writer.send(frame)

    def __enter__(self) -> Film:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()
        if kind is None:
            self._unfinished.replace(self._path)
        else:
            with suppress(FileNotFoundError):
                self._unfinished.unlink()


def film(
    saved: Saved,
    path: Path,
    *,
    env: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    deterministic: bool = True,
) -> Evaluation:
    """Film one episode of a policy from disk; see `evaluate_saved` for the environment.

    Args:
        path: of the mp4 file; replaced if it exists.

    Raises:
        UsageError: imageio-ffmpeg is missing, or the environment gives no pictures.
    """
    env_id, options, _ = environment_of(saved, env, env_kwargs)
    with own_words(env_id):
        spec, _ = find_spec(env_id)
        original = gymnasium.make(
            spec,
            max_episode_steps=options.get("max_episode_steps"),
            disable_env_checker=True,
            **options["kwargs"] | {"render_mode": "rgb_array"},
        )
    rate = original.metadata.get("render_fps") or FRAMES_PER_SECOND
    try:
        if "rgb_array" not in original.metadata.get("render_modes", ()):
            raise UsageError(f"video: expected an environment with pictures, {spec.id} has none")
        with Film(path, rate) as shooting:
            filmed = Filmed(original, shooting.show)
            cap = options.get("episode_cap", 1000)
            return evaluate(
                saved.policy, filmed, 1, seed, deterministic=deterministic, episode_cap=cap
            )
    finally:
        original.close()
