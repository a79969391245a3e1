"""1,000 random mutations of policies, checkpoints and recipes; `make soak` goes on for minutes."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import fuzz
import pytest

from rlpg.policies import Policy


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> fuzz.Fuzzer:
    return fuzz.Fuzzer(tmp_path_factory.mktemp("fuzz"))


def test_every_mutation_is_refused_or_loads_to_what_it_was(fuzzer: fuzz.Fuzzer) -> None:
    seen: Counter[str] = Counter()
    came: Counter[tuple[str, str]] = Counter()
    for seed in range(1000):
        kind, how, outcome = fuzzer.once(seed)
        assert outcome in fuzz.OUTCOMES, (seed, kind, how, outcome)
        seen[how] += 1
        came[kind, outcome] += 1
    wanted = {mutation.__name__ for mutation in (*fuzz.DAMAGE, *fuzz.ARRAY_MUTATIONS)}
    assert wanted <= seen.keys()
    assert min(seen[how] for how in wanted) >= 10
    assert came["SavedPolicy", "refused"] > 200
    assert came["SavedCheckpoint", "refused"] > 200


def test_a_mutation_is_a_function_of_its_seed(fuzzer: fuzz.Fuzzer, tmp_path: Path) -> None:
    again = fuzz.Fuzzer(tmp_path)
    assert [fuzzer.once(seed)[:2] for seed in range(60)] == [again.once(s)[:2] for s in range(60)]


def test_the_search_finds_a_loader_without_hashes(
    fuzzer: fuzz.Fuzzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Anything(bytes):
        def __ne__(self, other: object) -> bool:
            return False

    class Lenient:
        def hexdigest(self) -> Lenient:
            return self

        def encode(self) -> bytes:
            return Anything()

        def update(self, data: bytes) -> None:
            pass

    monkeypatch.setattr("rlpg.runs.trees.sha256", lambda data: Lenient())
    assert any(fuzzer.once(seed)[2] == "loaded something else" for seed in range(1000))


def test_the_search_finds_a_loader_that_casts(
    fuzzer: fuzz.Fuzzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Policy.load_state_dict

    def lenient(self: Policy, state: dict[str, object], strict: bool = True) -> object:
        own = self.state_dict()
        fits = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
        return load(self, {**own, **fits}, strict=strict)

    monkeypatch.setattr(Policy, "load_state_dict", lenient)
    assert any(fuzzer.once(seed)[2] == "loaded something else" for seed in range(400))


def test_the_program_says_how_many_were_refused(tmp_path: Path) -> None:
    program = Path(__file__).parents[2] / "scripts/fuzz.py"
    done = subprocess.run(
        [sys.executable, str(program), "--seed=7", "--count=30"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mutations from seed 7 on" in done.stdout
    assert "30 mutations in" in done.stdout
