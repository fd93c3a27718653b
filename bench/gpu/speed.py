"""Time, memory and launches of every operator beside its peers.

T rows, H hidden, V vocabulary. FLOPs are those of the GEMMs that cannot be avoided: 2 T V H for log-probs, 6 T V H for
ppo_head (4 with a frozen head), 8 T V H for preference_head, whose gradient waits for the whole pair. A rival is timed
only beside a check that it computes the same numbers; one that does not is marked.
"""

import gc
from collections.abc import Callable

import torch
from torch import Tensor

from bench import peers, timing
from bench.gpu.log import Log
from bench.shapes import Shape, decisions, head_inputs, offsets
from rto_fast.kernels.linear_logprob import linear_logprob
from rto_fast.kernels.ppo_head import ppo_head
from rto_fast.kernels.preference_head import preference_head
from rto_fast.kernels.rto_score import FactoredLogits, rto_score
from rto_fast.kernels.token_reward_gae import RewardSpec, token_reward_gae

Run = Callable[[], object]
OURS, GEMMS = "rto_fast", "bare GEMMs"
REWARD = RewardSpec(beta_1=0.05, beta_2=0.01, clip=0.05)
# a rival in half precision: its logits are rounded
LOOSE = 0.3


def measure(
    log: Log, table: str, label: str, runs: dict[str, Run], flops: float, device: str, rounds: int, right: dict
) -> None:
    """A row for each run, cold and hot. `right` holds what the parity check of a rival said."""
    alive = {name: run for name, run in runs.items() if _survives(log, f"{table}, {label}, {name}", run)}
    cold = timing.interleave(alive, device, rounds=rounds, cold=True)
    hot = timing.interleave(alive, device, rounds=rounds, cold=False)
    for name, run in alive.items():
        log.row(
            table,
            shape=label,
            rival=name,
            ms_cold=cold[name].median,
            ms_hot=hot[name].median,
            ms_hot_p20=hot[name].p20,
            ms_hot_p80=hot[name].p80,
            tflops_hot=flops / hot[name].median / 1e9,
            of_gemms_cold=cold[name].median / cold[GEMMS].median,
            of_gemms_hot=hot[name].median / hot[GEMMS].median,
            peak_mib=timing.peak_mib(run, device),
            launches=timing.on_device(run, device).launches,
            parity=right.get(name, ""),
        )


def _survives(log: Log, name: str, run: Run) -> bool:
    try:
        run()
    except Exception as error:  # a rival may fail in ways of its own: out of memory, a kernel that will not compile
        if name.endswith((OURS, GEMMS)):
            raise
        log.note(f"{name}: {type(error).__name__}: {str(error).strip().splitlines()[0][:160]}")
        return False
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True


def rivals(device: str, compiled: bool) -> dict[str, peers.LogProb]:
    found, _ = peers.available(device)
    return (
        {"eager": peers.eager}
        | ({"torch.compile": torch.compile(peers.eager, dynamic=False)} if compiled else {})
        | found
    )


def verdict(log: Log, name: str, got: Tensor, wanted: Tensor) -> str:
    """How far a rival's log-probs are from ours; beyond rounding it computes something else."""
    error = (got.detach().double() - wanted.double()).abs().max().item()
    if not error <= LOOSE:
        log.note(f"{name}: log-probs differ from ours by {error:.3g}: it is timed, but computes something else")
    return f"{'' if error <= LOOSE else 'FAILS: '}{error:.1e} nat"


def forward(log: Log, shape: Shape, rows: int, device: str, *, rounds: int, all_rivals: bool, compiled: bool) -> None:
    """Scoring: log-probs without gradients."""
    hidden, weight, target = head_inputs(shape, rows, device)
    label = f"{shape.name} {shape.width}x{shape.vocab} T={rows}"
    out = torch.empty(rows, shape.vocab, device=device, dtype=hidden.dtype)
    with torch.no_grad():
        ours = linear_logprob(hidden, weight, target)
        runs: dict[str, Run] = {
            GEMMS: lambda: torch.mm(hidden, weight.T, out=out),
            OURS: lambda: linear_logprob(hidden, weight, target),
        }
        right = {}
        for name, logprob in (rivals(device, compiled) if all_rivals else {}).items():
            run = _bind(logprob, hidden, weight, target)
            if _survives(log, f"scoring, {label}, {name}", run):
                wanted = ours.mean().expand(rows) if name in peers.SUMMED else ours
                right[name] = verdict(log, f"scoring, {label}, {name}", run(), wanted)
                runs[name] = run
        measure(log, "scoring (2 T V H)", label, runs, shape.gemm_flops(rows), device, rounds, right)


def _bind(function: Callable, *arguments) -> Run:
    return lambda: function(*arguments)


def training(log: Log, shape: Shape, rows: int, device: str, *, rounds: int, all_rivals: bool, compiled: bool) -> None:
    """PPO's loss and its gradients in hidden and weight; then with a frozen head."""
    hidden, weight, target = head_inputs(shape, rows, device)
    label = f"{shape.name} {shape.width}x{shape.vocab} T={rows}"
    given = decisions(linear_logprob(hidden, weight, target))
    hidden.requires_grad_()
    weight.requires_grad_()
    plain = (hidden.detach(), weight.detach())

    def gemms(frozen: bool) -> Run:
        z = torch.empty(rows, shape.vocab, device=device, dtype=hidden.dtype)
        d_hidden, d_weight = (torch.empty_like(x) for x in plain)

        def run() -> None:
            torch.mm(plain[0], plain[1].T, out=z)
            torch.mm(z, plain[1], out=d_hidden)
            if not frozen:
                torch.mm(z.T, plain[0], out=d_weight)

        return run

    def ours(weight: Tensor) -> Run:
        inputs = (hidden, weight) if weight.requires_grad else (hidden,)
        return lambda: torch.autograd.grad(ppo_head(hidden, weight, target, *given).loss, inputs)

    def theirs(logprob: peers.LogProb) -> Run:
        return lambda: torch.autograd.grad(
            peers.ppo_loss(logprob, hidden, weight, target, given, 0.2), (hidden, weight)
        )

    runs: dict[str, Run] = {GEMMS: gemms(False), OURS: ours(weight)}
    right = {}
    if all_rivals:
        wanted = runs[OURS]()[0].double()
        for name, logprob in rivals(device, compiled).items():
            run = theirs(logprob)
            if _survives(log, f"ppo, {label}, {name}", run):
                if name in peers.SUMMED:
                    right[name] = "cross-entropy, not PPO"
                else:
                    error = ((run()[0].double() - wanted).norm() / wanted.norm()).item()
                    right[name] = f"{'' if error < 0.1 else 'FAILS: '}{error:.1e} of |d hidden|"
                runs[name] = run
    measure(log, "ppo_head (6 T V H)", label, runs, 3 * shape.gemm_flops(rows), device, rounds, right)
    frozen = {GEMMS: gemms(True), OURS: ours(weight.detach())}
    measure(log, "ppo_head, frozen (4 T V H)", label, frozen, 2 * shape.gemm_flops(rows), device, rounds, {})


def preference(log: Log, shape: Shape, rows: int, device: str, *, rounds: int) -> None:
    """DPO's loss and gradients over eight packed sequences."""
    hidden, weight, target = head_inputs(shape, rows, device)
    hidden.requires_grad_()
    weight.requires_grad_()
    label = f"{shape.name} {shape.width}x{shape.vocab} T={rows}"
    cu_seqlens, lengths = offsets(rows, 8, device), offsets(rows, 8, "cpu").diff().tolist()
    with torch.no_grad():
        sums = torch.stack([part.sum() for part in linear_logprob(hidden, weight, target).split(lengths)])

    def eager_dpo() -> tuple[Tensor, ...]:
        logprobs = peers.eager(hidden, weight, target)
        chosen, rejected = (torch.stack([p.sum() for p in logprobs.split(lengths)]) - sums).chunk(2)
        return torch.autograd.grad(-torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).sum(), (hidden, weight))

    def ours() -> tuple[Tensor, ...]:
        out = preference_head(hidden, weight, target, cu_seqlens, sums)
        return torch.autograd.grad(out.loss, (hidden, weight))

    def gemms() -> None:
        z = torch.mm(hidden.detach(), weight.detach().T)
        torch.mm(hidden.detach(), weight.detach().T, out=z)
        torch.mm(z, weight.detach())
        torch.mm(z.T, hidden.detach())

    runs = {GEMMS: gemms, OURS: ours, "eager": eager_dpo}
    measure(log, "preference_head (8 T V H)", label, runs, 4 * shape.gemm_flops(rows), device, rounds, {})


def three_models(log: Log, shape: Shape, rows: int, device: str, *, rounds: int) -> None:
    """rto_score of three models with heads of their own, and with a shared head."""
    inputs = [head_inputs(shape, rows, device, seed=i) for i in range(3)]
    target = inputs[0].target
    cu_seqlens = offsets(rows, max(1, rows // 256), device)
    values = torch.linspace(-1, 1, rows, device=device)
    label = f"{shape.name} {shape.width}x{shape.vocab} T={rows}"

    def score(shared: bool) -> Run:
        logits = [FactoredLogits(x.hidden, inputs[0 if shared else i].weight) for i, x in enumerate(inputs)]
        return lambda: rto_score(*logits, target, values, cu_seqlens, REWARD)

    def gemms() -> None:
        for x in inputs:
            torch.mm(x.hidden, x.weight.T)

    with torch.no_grad():
        runs = {GEMMS: gemms, OURS: score(False), "rto_fast, one shared head": score(True)}
        measure(log, "rto_score (6 T V H)", label, runs, 3 * shape.gemm_flops(rows), device, rounds, {})


def rewards(log: Log, rows: int, sequences: int, device: str, *, rounds: int) -> None:
    """token_reward_gae beside a copy of as many bytes."""
    columns = [torch.randn(rows, device=device) for _ in range(4)]
    cu_seqlens = offsets(rows, sequences, device)
    # four columns in and three out; values are read once more, a row later, from the cache
    moved = 4 * rows * 7
    source = torch.empty(moved // 8, device=device)
    sink = torch.empty_like(source)
    runs: dict[str, Run] = {
        "copy": lambda: sink.copy_(source),
        OURS: lambda: token_reward_gae(*columns, cu_seqlens, REWARD),
    }
    cold = timing.interleave(runs, device, rounds=rounds, cold=True)
    hot = timing.interleave(runs, device, rounds=rounds, cold=False)
    for name, run in runs.items():
        alone = timing.on_device(run, device)
        log.row(
            "token_reward_gae",
            rows=rows,
            sequences=sequences,
            rival=name,
            us_cold=1e3 * cold[name].median,
            us_hot=1e3 * hot[name].median,
            us_of_kernels=alone.us,
            us_with_call=1e3 * timing.call(run, device).median,
            gb_per_s_cold=moved / cold[name].median / 1e6,
            of_copy_bandwidth_cold=cold["copy"].median / cold[name].median,
            launches=alone.launches,
        )


def workspace(log: Log, shape: Shape, rows: tuple[int, ...], workspace_mb: int, device: str) -> None:
    """Memory beyond inputs and outputs, at growing T."""
    for count in rows:
        hidden, weight, target = head_inputs(shape, count, device)
        given = decisions(linear_logprob(hidden, weight, target, workspace_mb=workspace_mb))
        hidden.requires_grad_()
        grads = (hidden.numel() * hidden.element_size()) / 2**20

        def score(hidden=hidden, weight=weight, target=target) -> None:
            with torch.no_grad():
                linear_logprob(hidden, weight, target, workspace_mb=workspace_mb)

        def update(hidden=hidden, weight=weight, target=target, given=given) -> None:
            torch.autograd.grad(ppo_head(hidden, weight, target, *given, workspace_mb=workspace_mb).loss, hidden)

        for name, run, outputs in (("linear_logprob", score, 0.0), ("ppo_head, frozen head", update, grads)):
            peak = timing.peak_mib(run, device)
            log.row(
                "workspace",
                operator=name,
                shape=shape.name,
                rows=count,
                workspace_mb=workspace_mb,
                mib=None if peak is None else peak - outputs,
            )
