"""A real command under torchrun: a process is killed, the run is asked to leave, and nothing of it shows in the end."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from fault_world import RANKS, World, anew, stepping


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds torchrun's processes through /proc")
def test_a_killed_and_preempted_run_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path) -> None:
    world = World(tmp_path)
    try:
        expected = world.weights(world.unbroken("train", "ode_init"))
        out = world.fresh("broken")
        launched = world.start(out, "train", "ode_init", restarts=1)
        launched.until(lambda: world.steps(out) >= 7)
        before = launched.ranks
        launched.signal(signal.SIGKILL, rank=1)
        launched.until(lambda: anew(launched, before))
        launched.until(stepping(world, out))
        launched.signal(signal.SIGUSR1, rank=RANKS - 1)
        assert launched.end() == 0, launched.said()
        assert launched.lines[-1].startswith("aad1: saved at step")
        reached = world.steps(out)
        assert 5 <= reached < 24, "of steps 4 and 6 at least the first was saved"
        again = world.run(out, "train", "ode_init", "--resume")
        assert again.code == 0, again.said()
        assert world.weights(out) == expected
        assert [row["step"] for row in world.rows(out)] == list(range(1, 25))
    finally:
        world.stop_all()
