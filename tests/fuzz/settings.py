"""Wrong settings, by flag and by TOML."""

import os
import shlex

from tests.fuzz.place import Case, Place


def flags() -> list[Case]:
    """One line: the flags, then what the error must hold, apart by a bar."""
    table = """
    --rto.lam nan | rto.lam | in [0, 1]
    --rto.lam -0.1 | rto.lam | in [0, 1]
    --rto.gamma 0 | rto.gamma
    --rto.gamma inf | rto.gamma
    --rto.clip nan | rto.clip | positive
    --rto.clip -1 | rto.clip | positive
    --rto.rollouts 0 | rto.rollouts | at least 1
    --rto.rollouts 1000000000000000000000 | rto.rollouts
    --rto.minibatch -4 | rto.minibatch | at least 1
    --rto.ppo-epochs 0 | rto.ppo_epochs | at least 1
    --rto.iterations 0 | rto.iterations | at least 1
    --rto.iterations 1e9 | --rto.iterations
    --rto.epochs nan | rto.epochs
    --rto.epochs inf | rto.epochs
    --rto.entropy-coef nan | rto.entropy_coef
    --rto.entropy-coef inf | rto.entropy_coef
    --rto.stop-kl -1 | rto.stop_kl
    --rto.stop-kl nan | rto.stop_kl
    --rto.optim.lr nan | optim.lr
    --rto.optim.lr -1e-5 | optim.lr
    --rto.optim.lr inf | optim.lr
    --rto.optim.lr 1e30 | optim.lr
    --rto.optim.lr 0 | optim.lr
    --sft.optim.betas 0.9 | --sft.optim.betas
    --sft.optim.betas 0.9 1.0 | optim.betas
    --sft.optim.betas nan 0.9 | optim.betas
    --sft.optim.eps -1 | optim.eps
    --sft.optim.eps nan | optim.eps
    --sft.optim.eps inf | optim.eps
    --sft.optim.weight-decay -1 | optim.weight_decay
    --sft.optim.weight-decay nan | optim.weight_decay
    --sft.optim.weight-decay 1e300 | optim.weight_decay
    --sft.optim.warmup 1.5 | optim.warmup
    --sft.optim.min-lr -1 | optim.min_lr
    --sft.optim.max-grad-norm nan | optim.max_grad_norm
    --sft.optim.max-grad-norm inf | optim.max_grad_norm
    --sft.optim.schedule square | --sft.optim.schedule
    --sft.epochs nan | sft.epochs
    --sft.epochs inf | sft.epochs
    --sft.epochs 1e300 | sft.epochs
    --sft.epochs -1 | sft.epochs
    --sft.batch-size 0 | sft.batch_size | at least 1
    --sft.batch-size 2.5 | --sft.batch-size
    --dpo.beta 0 | dpo.beta
    --dpo.beta nan | dpo.beta
    --dpo.beta inf | dpo.beta
    --dpo.label-smoothing 0.5 | dpo.label_smoothing
    --dpo.label-smoothing nan | dpo.label_smoothing
    --dpo.epochs inf | dpo.epochs
    --dpo.batch-size -1 | dpo.batch_size
    --dpo.loss hinge | --dpo.loss
    --rto.reward.beta-1 nan | rto.reward.beta_1 | finite
    --rto.reward.beta-2 inf | rto.reward.beta_2 | finite
    --rto.reward.beta-3 nan | rto.reward.beta_3 | finite
    --rto.reward.beta-1 1e300 | rto.reward.beta_1
    --rto.reward.clip 0 | rto.reward.clip
    --rto.reward.clip nan | rto.reward.clip
    --rto.reward.score-clip -1 | rto.reward.score_clip
    --rto.reward.score-clip nan | rto.reward.score_clip
    --rto.reward.missing-eos-penalty nan | rto.reward.missing_eos_penalty
    --rto.reward.granularity word | --rto.reward.granularity
    --rto.reward.adaptive-kl-target 0 | rto.reward.adaptive_kl_target
    --rto.reward.adaptive-kl-target inf | rto.reward.adaptive_kl_target
    --rto.reward.adaptive-kl-horizon 0 | rto.reward.adaptive_kl_horizon
    --rto.reward.shaping-only True | shaping_only | set beta_3
    --rto.sampling.temperature -1 | sampling.temperature
    --rto.sampling.temperature nan | sampling.temperature
    --rto.sampling.temperature inf | sampling.temperature
    --rto.sampling.top-p 0 | sampling.top_p
    --rto.sampling.top-p 1.1 | sampling.top_p
    --rto.sampling.top-k 0 | sampling.top_k
    --rto.sampling.top-k 1000000000000000000000 | sampling.top_k
    --rto.sampling.max-new-tokens 0 | sampling.max_new_tokens
    --rto.sampling.max-new-tokens 1000000000000 | rto.sampling.max_new_tokens
    --rto.sampling.max-new-tokens 1000000000 | context is 128
    --rto.sampling.batch-size 0 | sampling.batch_size
    --rto.correction.kind both | --rto.correction.kind
    --rto.correction.cap 0 | rto.correction.cap
    --rto.correction.cap nan | rto.correction.cap
    --rto.correction.low -1 | rto.correction.low
    --rto.correction.high 0.1 | rto.correction.low
    --rto.correction.kind tis --rto.sampling.temperature 0 | rto.correction.kind
    --rto.critic.lr nan | rto.critic.lr
    --rto.critic.lr inf | rto.critic.lr
    --rto.critic.lr 1e30 | rto.critic.lr
    --rto.critic.clip 0 | rto.critic.clip
    --rto.critic.coef nan | rto.critic.coef
    --rto.critic.coef -1 | rto.critic.coef
    --rto.critic.warmup-iterations -1 | rto.critic.warmup_iterations
    --rto.critic.kind twin | --rto.critic.kind
    --rto.critic.kind shared --rto.critic.model x | rto.critic.model
    --eval.prompts -1 | eval.prompts
    --eval.temperature nan | eval.temperature
    --eval.temperature inf | eval.temperature
    --eval.top-p nan | eval.top_p
    --eval.samples -1 | eval.samples
    --sweep.ratios 1 --sweep.clips 0 | sweep.clips
    --sweep.ratios nan --sweep.clips 1 | sweep.ratios
    --sweep.ratios inf --sweep.clips 1 | sweep.ratios
    --sweep.ratios 1 | sweep.clips
    --sweep.iterations 0 | sweep.iterations
    --checkpoint.every -1 | checkpoint.every
    --checkpoint.minutes nan | checkpoint.minutes
    --checkpoint.minutes inf | checkpoint.minutes
    --checkpoint.keep 0 | checkpoint.keep
    --seed 1.5 | --seed
    --seed -1 | seed
    --seed 18446744073709551616 | seed
    --seed x | --seed
    --seed nan | --seed
    --device quantum | device
    --device cuda:-1 | device
    --device meta | device
    --device '' | device
    --microbatch-rows 0 | microbatch_rows
    --microbatch-rows 3 | microbatch_rows | raise --microbatch-rows
    --microbatch-rows -5 | microbatch_rows
    --workspace-mb 0 | workspace_mb
    --workspace-mb 1000000000000000000000 | workspace_mb
    --log-every 0 | log_every
    --stages rto sft | stages | in the order
    --stages sft sft | stages | free of repeats
    --stages | stages
    --stages poo | --stages
    --resume maybe | --resume
    --model.dtype float8 | --model.dtype
    --model.liger True | model.liger
    --data.max-prompt 0 | data.max_prompt | at least 1
    --data.max-prompt 24 | data.max_length | above max_prompt
    --data.max-length 0 | data.max_length
    --data.max-length 1000000000 | data.max_length | context is 128
    --data.max-length nan | --data.max-length
    --data.held-out -1 | data.held_out
    --data.held-out 1000000000 | data.held_out
    --data.max-rows 0 | data.max_rows
    --data.template latex | --data.template
    --data.columns prompt | --data.columns | 'prompt' is not of the form NAME=YOURS
    --data.columns prompt question | --data.columns | write them as prompt=question
    --data.columns prompt= | --data.columns | not of the form NAME=YOURS
    --data.columns prompt=a prompt=b | --data.columns | given twice
    --data.columns promt=question | data.columns | unknown column 'promt'
    --data.columns prompt=question | data.columns | row 1 has no column 'question'
    --rolouts 8 | --rolouts
    --rto.rolouts 8 | --rto.rollouts
    --data | --data
    stray | stray
    --rto.lam | --rto.lam
    --rto.lam 0.9x | --rto.lam
    --recipe nothing | recipe | quickstart
    --recipe | recipe
    --recipe ../../etc/passwd | recipe
    --recipe ./absent.toml | recipe | absent.toml
    """
    cases = []
    for line in table.strip().splitlines():
        words, *says = (part.strip() for part in line.split("|"))
        cases.append(Case(f"flags: {words}", lambda place, words=words: shlex.split(words), tuple(says)))
    letters = "a" * 100_000
    return cases + [
        Case("flags: a value of 100,000 letters", lambda p: ["--seed", letters], ("--seed",)),
        Case("flags: a flag of 100,000 letters", lambda p: ["--" + letters, "1"], ("aaaa",)),
        Case("flags: terminal escapes", lambda p: ["--seed", "\x1b]0;owned\x07"], ("--seed", "\\x1b")),
        Case("flags: not UTF-8", lambda p: ["--rto.average", "\udcff"], ("--rto.average",)),
        Case(
            "flags: a column that is not UTF-8",
            lambda p: ["--data.columns", "prompt=\udcff"],
            ("--data.columns: wanted UTF-8",),
        ),
    ]


def recipes() -> list[Case]:
    """TOML files."""

    def text(name: str, content: str | bytes, *says: str) -> Case:
        return Case(f"recipe: {name}", lambda place: place.recipe(content), ("recipe", *says))

    def path(name: str, make, *says: str, file: str = "recipe.toml") -> Case:
        def words(place: Place) -> list[str]:
            make(place.own / file)
            return ["--recipe", str(place.own / file)]

        return Case(f"recipe: {name}", words, ("recipe: ", file, *says))

    return [
        text("no TOML", "rto: {rollouts: 8}", "not valid TOML"),
        text("a table without an end", "[rto\nrollouts = 8", "not valid TOML"),
        text("a value without quotes", "[data]\npath = pairs.jsonl", "not valid TOML"),
        text("a key twice", "[rto]\nrollouts = 8\nrollouts = 16", "not valid TOML"),
        text("a table twice", "[rto]\n[rto]\n", "not valid TOML"),
        text("a NUL", b"seed = 1\0", "not valid TOML"),
        text("UTF-16", "seed = 1".encode("utf-16"), "not valid TOML"),
        text("two byte order marks", b"\xef\xbb\xbf\xef\xbb\xbfseed = 1", "not valid TOML"),
        text("binary", bytes(range(256)), "not valid TOML"),
        text("JSON", '{"seed": 1}', "not valid TOML"),
        text("lists 100,000 deep", "seed = " + "[" * 100_000, "not valid TOML"),
        text("a key of 100 parts", "a." * 100 + "b = 1", "unknown key 'a'"),
        text("a key of 64,000 parts", "a." * 64_000 + "b = 1", "not valid TOML", "nested too deeply"),
        text("100 parts in each line", ("a." * 100 + "b = 1\n") * 1000, "not valid TOML", "nested too deeply"),
        text("a table of 64,000 parts", "[" + "'='." * 64_000 + "b]", "not valid TOML", "nested too deeply"),
        text("10 MB", "seed = 1\n" + "#" * 10_000_000, "larger than"),
        text("number of 10,000 digits", "seed = " + "9" * 10_000, "not valid TOML"),
        text("unknown key", "[rto]\nrolouts = 8", "unknown key 'rto.rolouts'", "did you mean 'rollouts'?"),
        text("unknown table", "[rot]\nrollouts = 8", "unknown key 'rot'", "did you mean 'rto'?"),
        text("unknown key in depth", "[rto.reward]\nbeta1 = 8", "unknown key 'rto.reward.beta1'", "'beta_1'"),
        text("hostile key", '["__class__"]\nx = 1', "unknown key '__class__'"),
        text("key with escapes", '"\\u001b[2J" = 1', "unknown key", "\\x1b"),
        text("the traceback flag as a key", "traceback = true", "unknown key 'traceback'"),
        text("a number for a table", "rto = 5", "rto must be a table"),
        text("a table for a number", "[seed]\na = 1", "seed must be a whole number"),
        text("a list of tables", "[[rto]]\nrollouts = 8", "rto must be a table"),
        text("a fraction for a whole number", "seed = 1.5", "seed must be a whole number"),
        text("a string for a number", 'seed = "1"', "seed must be a whole number"),
        text("true for a number", "seed = true", "seed must be a whole number"),
        text("a number for a string", "[model]\npath = 5", "model.path must be a string"),
        text("a date for a number", "seed = 1979-05-27", "seed must be a whole number"),
        text("a list for a string", '[data]\npath = ["a"]', "data.path must be a string"),
        text("one beta", "[sft.optim]\nbetas = [0.9]", "sft.optim.betas must be"),
        text("betas of strings", '[sft.optim]\nbetas = ["a", "b"]', "sft.optim.betas must be"),
        text("columns of numbers", "[data]\ncolumns = {prompt = 5}", "data.columns must be"),
        text("columns of a list", '[data]\ncolumns = ["prompt"]', "data.columns must be"),
        text("an unknown choice", '[model]\ndtype = "float99"', "model.dtype must be one of"),
        text("an unknown stage", 'stages = ["sft", "poo"]', "stages must be"),
        text("stages as a string", 'stages = "sft"', "stages must be a list, got 'sft'; write ['sft']"),
        text("NaN", "[rto.optim]\nlr = nan", "optim.lr"),
        text("infinity", "[sft.optim]\nlr = inf", "optim.lr"),
        text("huge whole number", "[sft.optim]\nlr = " + "9" * 400, "optim.lr"),
        text("negative", "[rto]\nrollouts = -8", "rto.rollouts"),
        text("a value of 1 MB", 'seed = "' + "a" * 100_000 + '"', "seed must be a whole number"),
        path("a folder", lambda file: file.mkdir(), "is a folder"),
        path("a pipe", os.mkfifo, "is a pipe"),
        path("a device", lambda file: file.symlink_to("/dev/zero"), "is a device"),
        path("a link that leads nowhere", lambda file: file.symlink_to("absent"), "is a link that leads nowhere"),
        path("a folder without an ending", lambda file: file.mkdir(), "is a folder", file="mine"),
        path("a file without an ending", lambda file: file.touch(), "does not end in .toml", file="mine"),
    ]


def cases() -> list[Case]:
    return flags() + recipes()
