"""The one command that turns measurements into tables and plots."""

import json

import pytest

from bench import report

MACHINE = {"processor": "x86", "threads": 2, "torch": "2.13.0", "triton": None, "commit": "abc1234"}


def entry(rival, ms, **info):
    return {
        "fullname": "bench/bench_ppo_head.py::test_ppo_head[x]",
        "name": "test_ppo_head[x]",
        "stats": {"median": ms / 1e3},
        "extra_info": dict(rival=rival, shape="512x50304", device="cpu", machine=MACHINE) | info,
    }


@pytest.fixture
def measured(tmp_path):
    entries = [
        entry("rto_fast", 12.5, of="eager", ratio=0.625, peak_mib=4.0),
        entry("eager", 20.0, of="eager", ratio=1.0),
        *(entry("rto_fast", 10.0 * n, growth="rows T", size=1000 * n, peak_mib=4.0) for n in (1, 4, 16)),
    ]
    path = tmp_path / "ppo.json"
    path.write_text(json.dumps({"benchmarks": entries}))
    return path


def test_tables_say_what_was_measured_and_what_was_not(measured, capsys):
    assert report.main([str(measured)]) == 0
    text = capsys.readouterr().out
    assert "| 512x50304 | rto_fast | 12.5 | 0.625 eager | 4 |" in text
    assert "| 512x50304 | eager | 20 | 1 eager | not measured |" in text
    assert "GPU: not measured." in text and "CPU: x86, 2 threads, torch 2.13.0, commit abc1234" in text


def test_a_file_keeps_what_stands_around_the_tables(measured, tmp_path):
    target = tmp_path / "README.md"
    target.write_text(f"before\n\n{report.BEGIN}\nold\n### bench_rollout\n\nkept\n\n{report.END}\n\nafter\n")
    for _ in range(2):  # the second time changes nothing
        assert report.main([str(measured), "--into", str(target)]) == 0
        text = target.read_text()
        assert text.startswith("before\n\n") and text.endswith("\n\nafter\n")
        assert text.count("### bench_ppo_head") == 1 and "old" not in text
        assert text.index("### bench_ppo_head") < text.index("### bench_rollout\n\nkept\n<!--")


def test_growth_is_drawn(measured, tmp_path):
    pytest.importorskip("matplotlib")
    target = tmp_path / "README.md"
    target.write_text(f"{report.BEGIN}\n{report.END}\n")
    plots = tmp_path / "plots"
    assert report.main([str(measured), "--into", str(target), "--plots", str(plots)]) == 0
    assert "![ppo_head_T_cpu](plots/ppo_head_T_cpu.svg)" in target.read_text()
    first = (plots / "ppo_head_T_cpu.svg").read_text()
    assert first.startswith("<?xml") and "us per row" in first
    report.main([str(measured), "--plots", str(plots)])
    assert (plots / "ppo_head_T_cpu.svg").read_text() == first


@pytest.mark.parametrize("text", ["", "{}", '{"benchmarks": [{"name": 3}]}', '{"benchmarks": 5}', "[]"])
def test_a_file_of_another_kind_is_named(text, tmp_path, capsys):
    path = tmp_path / "other.json"
    path.write_text(text)
    assert report.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"bench.report: {path} is not a file of pytest --benchmark-json") and error.count("\n") == 1


def test_missing_marks_and_files_are_named(measured, tmp_path, capsys):
    target = tmp_path / "README.md"
    target.write_text("nothing here")
    assert report.main([str(measured), "--into", str(target)]) == 2
    assert "needs one line <!-- bench.report -->" in capsys.readouterr().err and target.read_text() == "nothing here"
    assert report.main([str(tmp_path / "absent.json")]) == 2
    assert "absent.json" in capsys.readouterr().err
