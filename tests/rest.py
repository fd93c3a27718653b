"""What `pytest` alone leaves out, so that it ends within eight minutes on two cores: volume, never a promise.

Of each test here so many cases are run, evenly spaced among its parameters; the others carry the mark `rest`, which
`pytest -m rest` and CI run. The hypotheses of tests/fuzz/ are tried on a fifth of their examples.
"""

import os
from collections import defaultdict

import pytest

QUICK = "RTO_FAST_QUICK_TESTS"
"""The process in which pytest was called alone."""
KEPT = {
    "tests/config/test_trust.py::test_a_run_folder_cannot_allow_code": 2,
    "tests/credit/test_command.py::test_mistakes_are_one_line": 2,
    "tests/credit/test_likelihood.py::test_the_command_follows_every_start": 1,
    "tests/credit/test_likelihood.py::test_the_same_seed_gives_the_same_curve": 1,
    "tests/credit/test_token_rewards.py::test_rewards_are_the_log_ratio_of_the_models_own_logits": 1,
    "tests/data/test_template.py::test_one_bos_one_eos": 6,
    "tests/data/test_template.py::test_the_text_survives": 2,
    "tests/derivation/test_derivation.py::test_a_setting_changes_a_stage_and_its_derivation_alike": 25,
    "tests/files/test_disk.py::test_refusals_all_along_a_run": 0,
    "tests/files/test_links.py::test_a_run_writes_through_no_link": 4,
    "tests/files/test_unread.py::test_a_closed_stdout_is_no_fault": 1,
    "tests/files/test_unread.py::test_a_run_is_done_without_its_readers": 1,
    "tests/files/test_unread.py::test_a_viewer_ends_quietly_without_a_reader": 1,
    "tests/fuzz/test_malformed.py::test_as_a_user_calls_it": 1,
    "tests/fuzz/test_malformed.py::test_malformed_input": 100,
    "tests/judges/test_one_score.py::test_training_evaluation_and_server_agree": 8,
    "tests/judges/test_rules.py::test_math_reads_the_final_number": 6,
    "tests/judges/test_serve.py::test_a_server_in_a_process_of_its_own_scores_as_the_model_here": 1,
    "tests/kernels/test_bad_input.py::test_strides_do_not_matter": 12,
    "tests/kernels/test_compiles.py::test_kernels_compile_for_sm80_sm90_and_sm100_without_spills": 0,
    "tests/kernels/test_linear_logprob.py::test_real_vocabularies_on_the_real_tiles": 3,
    "tests/kernels/test_native.py::test_a_wheel_holds_the_library_and_the_operators": 1,
    "tests/kernels/test_native.py::test_address_sanitizer": 0,
    "tests/kernels/test_ppo_head.py::test_large_vocabulary": 4,
    "tests/kernels/test_ppo_head.py::test_real_vocabularies": 5,
    "tests/kernels/test_ppo_head.py::test_silenced_rows_cost_one_gemm_and_have_no_gradient": 3,
    "tests/kernels/test_weight_grad.py::test_micro_batches_are_rounded_once": 3,
    "tests/pipeline/test_estimate.py::test_a_run_takes_what_is_said": 3,
    "tests/pipeline/test_estimate.py::test_a_wrong_estimate_would_be_seen": 1,
    "tests/pipeline/test_quantized_runs.py::test_killed_runs_on_a_quantised_base_end_bit_for_bit_equal": 0,
    "tests/pipeline/test_takeover.py::test_a_run_that_differs_in_rto_trains_rto_alone": 1,
    "tests/pipeline/test_takeover.py::test_what_is_the_same_is_taken": 3,
    "tests/pipeline/test_train.py::test_a_comparison_without_evaluation": 1,
    "tests/ranks/test_equal.py::test_ranks_train_what_one_process_trains": 1,
    "tests/ranks/test_failures.py::test_a_killed_rank_ends_the_other_and_nothing_is_lost": 0,
    "tests/ranks/test_failures.py::test_what_one_rank_cannot_read_is_said_by_the_first": 0,
    "tests/rl/test_padded_rto.py::test_another_setting_is_another_iteration": 3,
    "tests/rollout/test_beam.py::test_same_answers_as_generate": 4,
    "tests/runs/test_alone.py::test_a_folder_in_use_is_known_before_models_are_loaded": 1,
    "tests/runs/test_alone.py::test_a_second_run_keeps_out_until_the_first_is_gone": 1,
    "tests/runs/test_alone.py::test_a_signal_between_two_seeds_saves_and_ends_well": 1,
    "tests/runs/test_alone.py::test_a_signal_outside_of_the_steps_saves_and_ends_well": 2,
    "tests/runs/test_alone.py::test_of_simultaneous_starts_one_runs_and_the_others_say_that_the_folder_is_in_use": 1,
    "tests/runs/test_alone.py::test_preflight_alone_writes_nothing": 1,
    "tests/runs/test_digests.py::test_the_next_stage_takes_no_damaged_one": 3,
    "tests/runs/test_inputs.py::test_the_quickstarts_own_files_count": 1,
    "tests/runs/test_inputs.py::test_what_changed_is_named_before_anything_is_done": 7,
    "tests/runs/test_read_back.py::test_no_second_model_is_alive_while_one_is_compared": 1,
    "tests/stages/test_memory.py::test_scoring_and_updating_rows_of_50304_words_stays_within_300_mib": 1,
    "tests/tasks/quickstart/test_task.py::test_the_same_seed_writes_the_same_bytes": 1,
    "tests/test_bench_gpu.py::test_a_smoke_run_checks_everything_and_claims_nothing": 1,
    "tests/test_bench_gpu.py::test_what_the_sanitizer_watches_runs": 0,
    "tests/test_layout.py::test_models_and_operators_import_side_by_side": 1,
    "tests/test_layout.py::test_pytest_alone_leaves_the_rest_out": 0,
    "tests/test_mutations.py::test_the_tests_that_kill_them_are_there": 0,
    "tests/test_walk.py::test_a_datum_is_followed_to_its_loss_and_touches_no_more_files_than_it_did": 1,
    "tests/theory/test_experiment.py::test_a_member_approaches_the_optimum": 2,
    "tests/theory/test_learning.py::test_broken_mathematics_is_noticed": 3,
    "tests/theory/test_robust.py::test_broken_mathematics_is_noticed": 2,
    "tests/training/test_adamw8.py::test_killed_runs_end_bit_for_bit_equal": 0,
    "tests/training/test_best.py::test_after_a_kill_the_best_is_the_same": 1,
    "tests/training/test_guards.py::test_whatever_hangs_is_named": 1,
    "tests/training/test_resume.py::test_a_damaged_checkpoint_is_passed_over": 2,
    "tests/training/test_resume.py::test_a_signal_saves_says_how_to_go_on_and_ends_well": 1,
    "tests/training/test_resume.py::test_kill_minus_nine_at_random_moments": 0,
    "tests/training/test_resume.py::test_killed_anywhere_a_run_ends_with_the_same_bits": 3,
    "tests/training/test_resume.py::test_whatever_changes_is_saved": 1,
}
"""Cases of a test that are no rest."""


LONG = (
    *("tests/files/test_disk.py", "tests/training/", "tests/kernels/test_compiles.py", "tests/pipeline/"),
    *("tests/accelerator/", "tests/ranks/", "tests/kernels/test_native.py", "tests/runs/"),
)
"""Files and rooms that take minutes: begun first, so that no worker waits for another at the end."""


def begin() -> None:
    """Here and in the workers that are started from here, the quick part alone is run."""
    os.environ[QUICK] = str(os.getpid())


def is_quick() -> bool:
    """Not in a pytest that a test starts for itself."""
    return os.environ.get(QUICK) in (str(os.getpid()), str(os.getppid()))


def mark(items: list[pytest.Item]) -> None:
    """Give the cases that are left out their mark."""
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    for name in KEPT.keys() & cases.keys():
        found, kept = cases[name], KEPT[name]
        chosen = {round(i * (len(found) - 1) / max(1, kept - 1)) for i in range(kept)}
        for number, item in enumerate(found):
            if number not in chosen:
                item.add_marker(pytest.mark.rest)


def long_first(items: list[pytest.Item]) -> None:
    """Stable, so that a file's tests stay together."""
    items.sort(key=lambda item: next((i for i, name in enumerate(LONG) if item.nodeid.startswith(name)), len(LONG)))


def examples(count: int) -> int:
    """How many examples a hypothesis is tried on."""
    return max(1, count // 5) if is_quick() else count
