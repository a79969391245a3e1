"""One training on two hosts, which are network namespaces here; and its ranks stay equal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rlpg

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
HASH = """
import hashlib, sys
import rlpg

run = rlpg.train(
    "CartPole-v1", sys.argv[1], total_steps=6400, run_dir=sys.argv[2], recipe="default", quiet=True,
    overrides={
        "rollout.num_envs": 4, "rollout.num_steps": 16, "evaluation.every": 6400,
        "evaluation.final_episodes": 1,
    },
)
parameters = b"".join(p.detach().numpy().tobytes() for p in run.policy.parameters())
sys.stdout.write(f"sha256 {hashlib.sha256(parameters).hexdigest()}\\n")  # one write: two processes
"""


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["reinforce", "ppo", "trpo"])
def test_after_a_hundred_updates_every_rank_has_the_same_bits(agent: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(HASH)
    done = subprocess.run(
        [*TORCHRUN, "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0",
         str(script), agent, str(tmp_path / "run")],
        capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    hashes = [line for line in done.stdout.splitlines() if line.startswith("sha256")]
    assert len(hashes) == 2
    assert len(set(hashes)) == 1


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two network namespaces, joined by a wire; 10.77.0.1 and 10.77.0.2."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs root and iproute2")
    names = [f"rlpg{os.getpid()}{side}" for side in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "v0", "netns", names[0], "type", "veth", "peer", "v0", "netns", names[1])
        for k, name in enumerate(names, start=1):
            ip("-n", name, "addr", "add", f"10.77.0.{k}/24", "dev", "v0")
            for device in ("lo", "v0"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no network namespaces here: {done.stderr.strip()}")


@pytest.mark.slow
def test_two_hosts_solve_cartpole(hosts: list[str], tmp_path: Path) -> None:
    """The folder is shared, as on a cluster; the hosts see each other through the wire only."""
    processes = [
        subprocess.Popen(
            ["ip", "netns", "exec", host, *TORCHRUN, "--nnodes=2", "--nproc-per-node=1",
             f"--node-rank={k}", "--master-addr=10.77.0.1", "--master-port=29511", "-m", "rlpg",
             "train", "CartPole-v1", "--recipe=default", "--agent=reinforce",
             "--total-steps=50_000", "--run-dir", str(tmp_path / "run"), "--quiet"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "v0"},
        )
        for k, host in enumerate(hosts)
    ]  # fmt: skip
    try:
        for process in processes:
            told, _ = process.communicate(timeout=500)
            assert process.returncode == 0, told
    finally:
        for process in processes:
            process.kill()
    result = rlpg.evaluate(rlpg.load(tmp_path / "run"), "CartPole-v1", 100, seed=1)
    assert result.mean >= 475
