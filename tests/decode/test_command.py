"""The command on a quickstart folder with fresh models, and on paths; its laws, its sentences, its errors."""

import json

import pytest
import tomli_w
from transformers import AutoModelForCausalLM

from rto_fast.config.recipe import load_recipe, plain
from rto_fast.decode.__main__ import main
from rto_fast.decode.tables import TABLES, as_text, over_optimised, over_optimised_text
from rto_fast.tasks.quickstart.task import fresh_model, write_task
from tests.tiny_run import write_model, write_pairs

SHORT = ["--num-prompts", "12", "--max-new-tokens", "6", "--device", "cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.toml").write_text(tomli_w.dumps(plain(load_recipe("quickstart"))))
    write_task(folder / "task", 0)
    tokenizer = ("tokenizer.json", "tokenizer_config.json")
    for seed, stage in enumerate(("sft", "dpo", "rto")):
        fresh_model(seed).save_pretrained(folder / stage)
        for name in tokenizer:
            (folder / stage / name).write_bytes((folder / "task/model" / name).read_bytes())
    return folder


def error(capsys, *args):
    assert main([*args]) == 2
    out = capsys.readouterr()
    lines = out.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("rto_fast: error: "), out.err
    return lines[0]


def test_a_run_folder(run, capsys):
    flags = ["--beams", "1", "3", "--search", "likelihood", "implicit_reward", "--best-of", "1", "3"]
    assert main(["--run", str(run), "--policy", "rto", *flags, "--strengths", "0", "1", "2", *SHORT]) == 0
    out = capsys.readouterr().out
    for text in ("12 prompts", "judged by oracle return", "Beam search", "Best of n samples", "Realignment", "b = 2"):
        assert text in out
    results = json.loads((run / "decode.json").read_text())
    assert (results["judge"], results["prompts"], len(results["sample_prompts"])) == ("oracle_return", 12, 3)
    beam, best_of, realigned = (results[table.key] for table in TABLES)
    assert set(results["over_optimised"]) == {table.key for table in TABLES}
    figures = ("oracle_return", "implicit_reward", "length", "kl")

    def same(row, other):
        return all(row[name] == other[name] for name in figures)

    sampled, greedy = results["baselines"]["sampled"], results["baselines"]["greedy"]
    assert [(r["search"], r["beams"]) for r in beam] == [
        (search, n) for search in ("likelihood", "implicit_reward") for n in (1, 3)
    ]
    assert same(beam[0], greedy) and beam[0]["win_rate"]["greedy"]["mean"] == 0.5
    assert beam[1]["likelihood"]["mean"] >= beam[0]["likelihood"]["mean"]
    assert beam[3]["implicit_reward"]["mean"] > beam[1]["implicit_reward"]["mean"]
    assert len(beam[0]["samples"]) == 3

    rows = {(r["sampler"], r["rank"], r["n"]): r for r in best_of}
    assert len(rows) == 3 * 2 * 2
    assert same(rows["dpo", "implicit_reward", 1], sampled) and same(rows["dpo", "likelihood", 1], sampled)
    for sampler in ("dpo", "reference", "rto"):
        for rank in ("implicit_reward", "likelihood"):
            assert rows[sampler, rank, 3][rank]["mean"] > rows[sampler, rank, 1][rank]["mean"]

    rows = {(r["base"], r["strength"]): r for r in realigned}
    assert len(rows) == 2 * 3
    assert rows["reference", 1.0]["oracle_return"] == sampled["oracle_return"]
    assert rows["reference", 1.0]["kl"]["mean"] == pytest.approx(sampled["kl"]["mean"], abs=1e-3)
    assert rows["reference", 0.0]["kl"]["mean"] == pytest.approx(0, abs=1e-4)
    assert rows["rto", 2.0]["oracle_return"] != rows["reference", 2.0]["oracle_return"]


def test_paths_and_tables_left_out(tmp_path, capsys):
    model = str(write_model(tmp_path / "model"))
    flags = ["--dpo", model, "--reference", model, "--prompts", str(write_pairs(tmp_path / "pairs.jsonl"))]
    flags += ["--output", str(tmp_path / "out.json"), "--template", "none", "--beams", "2", "--best-of", "--strengths"]
    assert main([*flags, "--max-new-tokens", "6", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "12 prompts" in out and "judged by implicit reward, the very thing" in out and "Best of" not in out
    results = json.loads((tmp_path / "out.json").read_text())
    assert len(results["beam"]) == 1 and results["best_of"] == results["realignment"] == []
    assert results["beam"][0]["implicit_reward"]["mean"] == 0


def test_errors_are_one_line(run, tmp_path, capsys):
    assert "run: give --run with a finished run's folder, or --dpo, --reference, --prompts" in error(capsys)
    assert "run: no config.toml in" in error(capsys, "--run", str(tmp_path))
    there = ["--run", str(run), *SHORT]
    assert "beams: must be whole numbers from 1 on" in error(capsys, *there, "--beams", "0")
    assert "strengths: must be finite" in error(capsys, *there, "--strengths", "nan")
    assert "num_prompts: must be 2 or more" in error(capsys, "--run", str(run), "--num-prompts", "1")
    assert "length_penalty: must be between" in error(capsys, *there, "--length-penalty", "99")
    assert "dpo: no config.json in" in error(capsys, *there, "--dpo", str(tmp_path / "none"))
    assert "output: " in error(capsys, *there, "--output", str(tmp_path / "none/decode.json"))
    assert "nothing to do" in error(capsys, *there, "--beams", "--best-of", "--strengths")
    assert "bems" in error(capsys, *there, "--bems", "3")
    assert "max_position_embeddings=64" in error(capsys, "--run", str(run), "--max-new-tokens", "64")
    other = str(write_model(tmp_path / "other"))
    assert "dpo and reference do not have the same tokenizer" in error(capsys, *there, "--reference", other)
    assert not (tmp_path / "decode.json").exists()


def test_models_of_another_vocabulary_are_refused(run, tmp_path, capsys):
    # the same tokenizer, but a head that was padded to a round number of rows
    padded = AutoModelForCausalLM.from_pretrained(run / "sft")
    padded.resize_token_embeddings(128)
    padded.save_pretrained(tmp_path / "padded")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "padded" / name).write_bytes((run / "sft" / name).read_bytes())
    flags = ["--run", str(run), "--reference", str(tmp_path / "padded"), "--beams", "--best-of", *SHORT]
    assert "must have one vocabulary, got 116 and 128 tokens" in error(capsys, *flags)


def test_over_optimisation_is_said_where_it_is_seen():
    table = TABLES[0]

    def row(beams, judged, sought, ci95=0.1, search="implicit_reward"):
        figures = {"oracle_return": judged, "implicit_reward": sought, "likelihood": -sought}
        return {"beams": beams, "search": search} | {k: {"mean": v, "ci95": ci95} for k, v in figures.items()}

    def found(rows, judge="oracle_return"):
        return over_optimised(rows, table.family, table.setting, judge)

    rows = [row(1, 1.0, 0.1), row(2, 2.0, 0.2), row(5, 0.5, 0.4)]
    (finding,) = found(rows)
    assert finding == {
        "search": "implicit_reward",
        "sought": "implicit_reward",
        "best": {"beams": 2, "oracle_return": 2.0, "implicit_reward": 0.2},
        "last": {"beams": 5, "oracle_return": 0.5, "implicit_reward": 0.4},
    }
    said = over_optimised_text(table, finding, "oracle_return")
    assert "2.00 at beams = 2 and 0.50 at beams = 5, while the DPO reward goes from 0.20 to 0.40" in said
    assert not found(rows[:2])
    assert not found([row(1, 1.0, 0.1, 0.5), row(2, 0.5, 0.2, 0.5)])
    assert not found([row(1, 1.0, 0.4), row(2, 0.5, 0.2)])
    assert not found(rows, "implicit_reward")
    assert not found(rows[:1])
    falling = [row(1, 2.0, 0.4, search="likelihood"), row(2, 0.5, 0.2, search="likelihood")]
    both = found([*rows, *falling])  # each family by itself
    assert [f["search"] for f in both] == ["implicit_reward", "likelihood"]
    assert "log pi_dpo goes from -0.40 to -0.20" in over_optimised_text(table, both[1], "oracle_return")
    shown = [r | {"win_rate": {}, "eos_rate": 1.0, "seconds": 0.0, "length": r["likelihood"]} for r in rows]
    assert as_text(table, shown, [finding], "oracle_return")[-1] == f"  {said}"
