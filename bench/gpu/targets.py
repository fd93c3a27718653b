"""What the operators were built to reach, and what was found: met, missed or not measured."""

from bench.gpu.log import Log
from bench.gpu.speed import GEMMS, OURS
from bench.shapes import LLAMA, PYTHIA, QWEN, REAL, Shape

MS = {PYTHIA: 9.5, LLAMA: 37.0, QWEN: 23.0}
FORWARD, PPO = "scoring (2 T V H)", "ppo_head (6 T V H)"


def label(shape: Shape) -> str:
    return f"{shape.name} {shape.width}x{shape.vocab} T=8192"


def judge(log: Log) -> None:
    """Add the table of targets; a figure that is missing, or comes from a smoke run, is not measured."""
    log.results["tables"].pop("targets", None)

    def target(name: str, value: float | None, limit: float, at_most: bool = True) -> None:
        met = None if value is None or log.results["smoke"] else (value <= limit if at_most else value >= limit)
        word = {None: "not measured", True: "met", False: "missed"}[met]
        log.row("targets", target=name, limit=limit, found=None if met is None else value, verdict=word)

    def of(table: str, column: str, **wanted: object) -> float | None:
        row = log.find(table, **wanted)
        return None if row is None else row.get(column)

    for shape in REAL:
        at = dict(shape=label(shape))
        ours = dict(rival=OURS, **at)
        target(f"scoring, ms / GEMM, {shape.name}", of(FORWARD, "of_gemms_hot", **ours), 1.10)
        target(f"ppo_head, ms / 3 GEMMs, {shape.name}", of(PPO, "of_gemms_hot", **ours), 1.12)
        target(f"ppo_head, ms, {shape.name}", of(PPO, "ms_hot", **ours), MS[shape])
        for table in (FORWARD, PPO):
            rows = [row for row in log.results["tables"].get(table, ()) if row["shape"] == at["shape"]]
            # a rival that computes something else is no faster, and a cross-entropy is no policy loss
            wrong = ("FAILS", "cross-entropy")
            others = [
                row["ms_hot"]
                for row in rows
                if row["rival"] not in (OURS, GEMMS) and not row.get("parity", "").startswith(wrong)
            ]
            mine = of(table, "ms_hot", **ours)
            fastest = mine / min(others) if others and mine is not None else None
            target(f"{table}, ms / fastest peer, {shape.name}", fastest, 1.0)
    for row in log.results["tables"].get("workspace", ()):
        share = None if row["mib"] is None else row["mib"] / row["workspace_mb"]
        target(f"workspace / workspace_mb, {row['operator']}, T={row['rows']}", share, 1.1)
    small, large = (dict(rows=rows, rival=OURS) for rows in (32768, 1 << 24))
    target("token_reward_gae, us, 32,768 rows", of("token_reward_gae", "us_hot", **small), 50.0)
    target("token_reward_gae, launches", of("token_reward_gae", "launches", **small), 1)
    bandwidth = of("token_reward_gae", "of_copy_bandwidth_cold", **large)
    target("token_reward_gae / copy bandwidth, 16 M rows", bandwidth, 0.7, at_most=False)
