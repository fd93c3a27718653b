"""What a run says of its threads when other work is on their cores."""

import time

import pytest
import torch

from rto_fast.pipeline import threads
from rto_fast.pipeline.threads import _measure, advice
from rto_fast.train import main
from tests.kill_harness import arguments, setting


@pytest.mark.parametrize("seconds, best", [
    ({1: 0.010, 2: 0.040}, 1),
    ({1: 0.010, 2: 0.015}, 1),
    ({1: 0.010, 2: 0.014}, None),  # no gain, but nothing to speak of
    ({1: 0.010, 2: 0.005}, None),
    ({1: 0.010, 4: 0.020, 8: 0.090}, 1),
    ({1: 0.010, 4: 0.003, 8: 0.009}, 4),
    ({1: 0.010, 4: 0.003, 8: 0.002}, None),
])  # fmt: skip
def test_fewer_threads_are_named_where_they_are_clearly_faster(seconds, best):
    line = advice(max(seconds), lambda counts: {count: seconds[count] for count in counts})
    if best is None:
        assert line is None
    else:
        assert line.startswith(f"threads: {max(seconds)} are slower than {best} at present (")
        assert f"{1e3 * seconds[max(seconds)]:.3g} ms against {1e3 * seconds[best]:.3g} ms" in line
        assert f"OMP_NUM_THREADS={best} in front" in line


def test_one_thread_needs_no_measurement():
    assert advice(1, lambda counts: pytest.fail("measured")) is None


def test_a_measurement_takes_a_moment_and_leaves_everything_as_it_was(monkeypatch):
    now = iter(range(10**6))  # a second passes between two looks at the clock: one call in each turn
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))
    before, state = torch.get_num_threads(), torch.get_rng_state()
    assert _measure([1, 2]) == {1: 1.0, 2: 1.0}
    assert next(now) == 2 * 2 * threads.ROUNDS
    assert torch.get_num_threads() == before and torch.equal(torch.get_rng_state(), state)


def test_a_run_says_so_at_its_start(tmp_path, capsys, monkeypatch):
    setting(tmp_path)
    monkeypatch.setattr(threads, "_measure", lambda counts: {count: float(count) for count in counts})
    monkeypatch.setattr("rto_fast.kernels.common.native.threads", lambda: 2)
    assert main([*arguments(tmp_path, "run"), "--preflight-only", "--device", "cpu"]) == 0
    assert "\nthreads: 2 are slower than 1 at present (2e+03 ms against 1e+03 ms" in capsys.readouterr().out
