"""The command line: one verb per thing a user does; nothing heavy is imported before its use."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rlpg.errors import FileError, RlpgError, UsageError
from rlpg.options import (
    add_environment_arguments,
    add_settings,
    chosen_arguments,
    chosen_settings,
    hyphenated,
)
from rlpg.parsers import HelpFormatter, Parser, Version, add_verb, refuse
from rlpg.runs import recipe as recipes
from rlpg.runs.recipe import Recipe
from rlpg.streams import complain, open_closed_streams, report, silence_broken_output

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0 done, 1 the run failed, 2 it was asked wrongly."""
    if "" not in sys.path:
        sys.path.append("")  # module:Id-v0 finds the modules of the folder one works in
    open_closed_streams()
    try:
        words = [hyphenated(word) for word in (sys.argv[1:] if argv is None else argv)]
        arguments, rest = build_parser().parse_known_args(words)
        code = int(arguments.command(arguments, rest))
        sys.stdout.flush()  # a full disk is told here, not by the interpreter as it exits
        return code
    except (UsageError, FileError) as error:
        return complain(error, EXIT_USAGE)
    except RlpgError as error:
        return complain(error, EXIT_FAILED)
    except OSError as error:
        silence_broken_output()
        place = f"{error.filename}: " if error.filename else ""
        return complain(UsageError(f"{place}{error.strerror}; choose another place"), EXIT_USAGE)
    except KeyboardInterrupt as stop:
        stop.args = ("interrupted",)
        return complain(stop, EXIT_INTERRUPTED)


def build_parser() -> Parser:
    """The whole command line."""
    parser = Parser(
        prog="rlpg",
        formatter_class=HelpFormatter,
        description="Policy-gradient agents on any Gymnasium environment.",
        epilog="example: rlpg train CartPole-v1 && tensorboard --logdir runs",
    )
    parser.add_argument("--version", action=Version)
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB", dest="verb")
    add_train(verbs)
    add_resume(verbs)
    add_evaluate(verbs)
    add_diagnose(verbs)
    add_check_env(verbs)
    add_agents(verbs)
    return parser


# ---- train -----------------------------------------------------------------------------------


def add_train(verbs: Any) -> None:
    """`rlpg train ENV`."""
    parser = add_verb(
        verbs,
        train,
        help="train an agent",
        usage="rlpg train ENV [options]",
        description="Train an agent on an environment. Settings come from the defaults shown here, "
        "the recipe\n(shipped for some environments, or --recipe), and the options, in this order.",
        epilog="examples:\n  rlpg train CartPole-v1\n"
        "  rlpg train LunarLander-v3 --seeds 0 1 2 --total-steps 1_000_000\n"
        "  rlpg train FrozenLake-v1 --environment.kwargs.is_slippery false --learner.gamma 0.9",
    )
    parser.add_argument("env", metavar="ENV", help="a Gymnasium id, or module:Id-v0")
    parser.add_argument("--recipe", metavar="FILE", help="a TOML recipe; `default`: none, not even "
                        "the shipped one")  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, nargs="+", metavar="N", help="train once with each of these seeds"
    )
    parser.add_argument(
        "--run-dir", type=Path, metavar="DIR",
        help="where the run is kept (default: runs/ENV/AGENT/SEED)",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="print the result only")
    add_settings(parser)


def train(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Train once per seed; what was trained and what to do next."""
    changes = chosen_settings(arguments, rest)
    agent = str(changes.pop("agent", "reinforce"))

    from rlpg.prepare import find_recipe
    from rlpg.training import run_recipe

    base = recipes.override(find_recipe(arguments.env, agent, arguments.recipe), changes)
    seeds = arguments.seeds or [base.seed]
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds: expected different seeds, got {seeds}")
    paths, means = [], []
    for seed in seeds:
        run_dir = arguments.run_dir
        if run_dir is not None and len(seeds) > 1:
            run_dir = run_dir / str(seed)
        chosen = recipes.override(base, {"seed": seed})
        run = run_recipe(arguments.env, chosen, run_dir, quiet=arguments.quiet)
        paths.append(run.path)
        means += [run.evaluation.mean] if run.evaluation else []
        report(f"seed {seed}: {run.evaluation or 'trained'}")
    if len(means) > 1:
        low, high = min(means), max(means)
        report(f"{len(means)} seeds: median return {median(means):.2f} ({low:.2f} to {high:.2f})")
    report(f"saved in {', '.join(map(str, paths))}")
    if not arguments.quiet:
        report(f"next:  rlpg evaluate {paths[0]} --episodes 100")
        report(f"       tensorboard --logdir {paths[0] if arguments.run_dir else 'runs'}")
    return 0


# ---- resume ----------------------------------------------------------------------------------


def add_resume(verbs: Any) -> None:
    """`rlpg resume RUN`."""
    parser = add_verb(
        verbs,
        resume,
        help="continue a run that was stopped, killed or finished",
        description="Continue a run from its newest checkpoint, to the same bits as if it had not "
        "stopped.",
        epilog="examples:\n  rlpg resume runs/CartPole-v1/reinforce/0\n"
        "  rlpg resume runs/Hopper-v5/reinforce/0 --total-steps 2_000_000",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    parser.add_argument("--total-steps", metavar="N", help="a new budget (the run's own)")
    parser.add_argument("--env", metavar="ENV", help="where the run does not know how to make it")
    parser.add_argument(
        "--exact", action="store_true", help="refuse to go on where the bits may differ (false)"
    )
    parser.add_argument("--quiet", action="store_true", help="print the result only (false)")
    add_environment_arguments(parser)


def resume(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Continue one run."""
    kwargs = chosen_arguments(rest, "resume")
    from rlpg.training import resume

    total = None
    if arguments.total_steps is not None:
        changes = {"total_steps": arguments.total_steps}
        total = recipes.override(Recipe(), changes).total_steps
    run = resume(
        arguments.run,
        env=arguments.env,
        env_kwargs=kwargs,
        total_steps=total,
        exact=arguments.exact,
        quiet=arguments.quiet,
    )
    report(run.evaluation or "trained")
    report(f"saved in {run.path}")
    return 0


# ---- evaluate --------------------------------------------------------------------------------


def add_evaluate(verbs: Any) -> None:
    """`rlpg evaluate SOURCE`."""
    parser = add_verb(
        verbs,
        evaluate,
        help="evaluate a saved policy",
        description="Play whole episodes with a saved policy.",
        epilog="examples:\n  rlpg evaluate runs/CartPole-v1/reinforce/0 --episodes 100\n"
        "  rlpg evaluate CartPole-v1-reinforce --stochastic --json result.json",
    )
    parser.add_argument("source", metavar="RUN|AGENT", help="a run, a policy folder, or the name "
                        "of a shipped agent")  # fmt: skip
    parser.add_argument("--episodes", type=int, default=100, metavar="N", help="how many (100)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the episodes (0)")
    parser.add_argument(
        "--stochastic", action="store_true", help="sample actions instead of the most likely ones"
    )
    parser.add_argument(
        "--best", action="store_true", help="a run's best policy instead of its last"
    )
    parser.add_argument(
        "--env", metavar="ENV", help="another environment than the one it was trained on"
    )
    parser.add_argument(
        "--num-envs", type=int, metavar="N", help="copies side by side (as many as episodes, <= 64)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and episodes here")
    parser.add_argument(
        "--video", type=Path, nargs="?", const=Path("episode.mp4"), metavar="FILE",
        help="film one episode more (episode.mp4)",
    )  # fmt: skip
    add_environment_arguments(parser)


def evaluate(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Evaluate and print one line."""
    kwargs = chosen_arguments(rest, "evaluate")
    from rlpg.evaluation import evaluate_saved
    from rlpg.loading import load_saved

    for name in ("json", "video"):
        path = getattr(arguments, name)
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"--{name}: expected a file in a folder that exists, got {path}")
    saved = load_saved(arguments.source, "best" if arguments.best else "last")
    evaluation = evaluate_saved(
        saved,
        env=arguments.env,
        env_kwargs=kwargs,
        episodes=arguments.episodes,
        seed=arguments.seed,
        deterministic=not arguments.stochastic,
        num_envs=arguments.num_envs,
    )
    name = arguments.env or saved.environment["id"]
    print(evaluation.environments, file=sys.stderr)
    if arguments.json is not None:  # before printing: a closed pipe costs the words only
        from rlpg.runs.encoding import to_json
        from rlpg.runs.files import write

        content = {"env": name, "seed": arguments.seed, **evaluation.summary()}
        write(arguments.json, to_json({**content, "table": evaluation.table()}))
    print(f"{name}: {evaluation}")
    if arguments.video is not None:
        from rlpg.video import film

        played = film(
            saved,
            arguments.video,
            env=arguments.env,
            env_kwargs=kwargs,
            seed=arguments.seed,
            deterministic=not arguments.stochastic,
        )
        print(f"filmed {arguments.video}: {played.lengths[0]} steps, return {played.mean:.2f}")
    return 0


# ---- diagnose --------------------------------------------------------------------------------


def add_diagnose(verbs: Any) -> None:
    """`rlpg diagnose RUN`."""
    parser = add_verb(
        verbs,
        diagnose,
        help="measure a run's gradient: which baseline, which batch size",
        description="Measure the policy gradient of a run at its newest checkpoint, by every "
        "baseline:\nnoise, bias, and the batch size at which signal and noise are equally strong.",
        epilog="example: rlpg diagnose runs/CartPole-v1/reinforce/0 --plot gradient.png",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    parser.add_argument(
        "--episodes", type=int, default=256, metavar="N", help="episodes to measure with (256)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the episodes (0)")
    parser.add_argument("--env", metavar="ENV", help="where the run does not know how to make it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table here (none)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it here (none)")
    add_environment_arguments(parser)


def diagnose(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Print the table; write and draw it on request."""
    kwargs = chosen_arguments(rest, "diagnose")
    from rlpg import diagnosis
    from rlpg.runs.encoding import to_json
    from rlpg.runs.files import write

    found = diagnosis.diagnose(
        arguments.run,
        env=arguments.env,
        env_kwargs=kwargs,
        episodes=arguments.episodes,
        seed=arguments.seed,
    )
    if arguments.json is not None:
        write(arguments.json, to_json(found.as_dict()))
    if arguments.plot is not None:
        diagnosis.plot(found, arguments.plot)
    print(found)
    return 0


# ---- check-env -------------------------------------------------------------------------------


def add_check_env(verbs: Any) -> None:
    """`rlpg check-env ENV`."""
    parser = add_verb(
        verbs,
        check_env,
        help="find what is wrong with an environment before training on it",
        usage="rlpg check-env ENV [options]",
        description="Play an environment with random actions, look at every call, play episodes "
        "again, and ask\nGymnasium's checker. Exit code 1 if there is a fault; warnings are none.",
        epilog="examples:\n  rlpg check-env CartPole-v1\n"
        "  rlpg check-env my_package.tasks:Crane-v0 --environment.kwargs.load 3 --json crane.json",
    )
    parser.add_argument("env", metavar="ENV", help="a Gymnasium id, or module:Id-v0")
    parser.add_argument(
        "--steps", type=int, default=1000, metavar="N", help="play at least so many steps (1000)"
    )
    parser.add_argument(
        "--episodes", type=int, default=3, metavar="N", help="and at least so many episodes (3)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the episodes and the actions (0)"
    )
    parser.add_argument(
        "--json", type=Path, nargs="?", const=Path("-"), metavar="FILE",
        help="write the report here, too; without FILE print it as JSON",
    )  # fmt: skip
    add_environment_arguments(parser)


def check_env(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Print the report."""
    kwargs = chosen_arguments(rest, "check-env")
    from rlpg.checking import check_env
    from rlpg.runs.encoding import to_json
    from rlpg.runs.files import write

    path = arguments.json
    if path is not None and not path.absolute().parent.is_dir():
        raise UsageError(f"--json: expected a file in a folder that exists, got {path}")
    found = check_env(
        arguments.env,
        env_kwargs=kwargs,
        steps=arguments.steps,
        episodes=arguments.episodes,
        seed=arguments.seed,
    )
    content = to_json(found.as_dict())
    if path == Path("-"):
        print(content.decode(), end="")
    else:
        if path is not None:  # before printing: a closed pipe costs the words only
            write(path, content)
        print(found)
    return 0 if found.passed else EXIT_FAILED


# ---- agents ----------------------------------------------------------------------------------


def add_agents(verbs: Any) -> None:
    """`rlpg agents`."""
    add_verb(
        verbs,
        agents,
        help="list the trained agents that come with the library",
        description="List the shipped agents and what they reach.",
        epilog="example: rlpg evaluate CartPole-v1-reinforce",
    )


def agents(arguments: argparse.Namespace, rest: list[str]) -> int:
    """One line per shipped agent."""
    refuse(rest, "agents")
    from rlpg.loading import shipped_results

    for name, results in shipped_results():
        print(f"{name:42} {results}")
    return 0
