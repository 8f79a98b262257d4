"""How many planted faults do the tests find? mutmut on the mathematics (ajuste/learning) and on the loops.

    pip install -c constraints.txt -e '.[mutation]'
    make mutation                                    # every file of the table below; writes docs/measured/mutation.md
    make mutation FILES="kl rl/loop"           # these alone, by the end of their path; the page keeps the others
    make mutation FILES="kl rl/loop" AGAIN=1   # of the same files measured before: the survivors alone, after tests
                                               # were added (none taken away) and the code was left as it is

mutmut (3.x) changes one operator, number, argument, string or assignment at a time, and runs the tests that reach the
function: a fault that no test notices has survived.

    score = killed / (killed + survived)     killed: a test failed, or ran far beyond its time
                                             survived: all passed, or no test reaches the function

Each file is measured by the tests that stand in its row of `FILES`, in a working folder under .mutation/, where mutmut
puts all mutants of a function behind one switch. A survivor that cannot be killed has its reason in
benchmarks/mutation.toml; one without a reason, or a score below `WANTED`, makes the command end with 1.
"""

import ast
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".mutation"
PAGE = ROOT / "docs/measured/mutation.md"
FOUND = ROOT / "docs/measured/mutation.json"
REASONS = ROOT / "benchmarks/mutation.toml"
WANTED = 0.95
MUTATED = ("ajuste", "tasks")
LOOKED_AT = ("ajuste/learning", "tasks/rl", "tasks/supervised")
NOTHING = ("tasks/rl/algorithm.py", "tasks/rl/config.py")  # declarations, where mutmut finds nothing to change
READ = ("tests", "benchmarks", "flows", "sources", "params.yaml", "policy.yaml", "presets", "dvc.yaml")

L, T, R = "ajuste/learning", "tests/learning", "tests/tasks/test_rl"
FIRST_STEP, BY_HAND = "tests/keys/test_ppo_first_step.py", "tests/keys/test_ppo_by_hand.py"
TABLE = [BY_HAND, f"{R}_table.py", f"{R}_world.py", f"{R}_steps.py",
         f"{FIRST_STEP}::test_losses_are_those_of_the_configured_clips",
         f"{FIRST_STEP}::test_what_the_importance_weights_came_to_is_said"]  # fmt: skip
# each file, and the tests that measure it
FILES = {
    f"{L}/losses/bradley_terry.py": [f"{T}/test_bradley_terry.py"],
    f"{L}/losses/cross_entropy.py": [f"{T}/test_losses.py"],
    f"{L}/losses/preference.py": [f"{T}/test_preference.py"],
    f"{L}/rl/advantages.py": [f"{T}/test_advantages.py"],
    f"{L}/rl/best_of_n.py": [f"{T}/test_best_of_n.py"],
    f"{L}/rl/divergence.py": [f"{T}/test_divergence.py"],
    f"{L}/rl/group.py": [f"{T}/test_group.py"],
    f"{L}/rl/kl.py": [f"{T}/test_kl.py"],
    f"{L}/rl/ppo.py": [f"{T}/test_ppo.py", f"{T}/test_sampler_gap.py"],
    f"{L}/rl/rollout.py": [f"{T}/test_rollout.py"],
    f"{L}/rl/sampler_gap.py": [f"{T}/test_sampler_gap.py"],
    f"{L}/rl/steps.py": [f"{T}/test_steps.py"],
    f"{L}/rl/token_log_probs.py": [f"{T}/test_token_log_probs.py"],
    f"{L}/statistics/agreement.py": [f"{T}/test_agreement.py"],
    f"{L}/statistics/calibration.py": [
        f"{T}/test_calibration.py::{name}"
        for name in (
            "test_plain_and_squared_errors_are_torchmetrics", "test_errors_by_hand_and_weights",
            "test_what_the_interval_holds", "test_the_interval_of_few_rows_and_of_extremes_stays_in_its_range",
            "test_the_interval_is_that_of_a_second_computation", "test_noise_is_spread_evenly",
            "test_low_has_all_five_percent_where_high_cannot_be_too_low",
            "test_bins_are_closed_above_and_few_rows_are_a_binomial",
            "test_gaps_that_noise_explains_are_drawn_to_their_mean_and_one_is_itself",
            "test_confidences_that_are_exactly_right_have_no_direction",
        )
    ],
    f"{L}/statistics/difference.py": [f"{T}/test_difference.py"],
    f"{L}/statistics/mcnemar.py": [f"{T}/test_mcnemar.py"],
    f"{L}/statistics/metrics.py": [f"{T}/test_statistics.py"],
    f"{L}/statistics/paired.py": [
        f"{T}/test_comparison.py::{name}"
        for name in (
            "test_the_bound_is_students_and_the_bootstraps", "test_rare_large_losses_cost_more_than_rare_large_gains",
            "test_the_correction_is_the_root_of_its_cubic_and_rises_with_the_tail",
            "test_rows_count_by_their_tokens", "test_clusters_by_brute_force_over_resampled_sources",
            "test_equal_models_and_a_shift", "test_what_cannot_be_compared",
            "test_all_rows_of_one_source_and_clusters_of_other_rows", "test_the_bound_from_counts_is_the_bound",
            "test_what_is_seen_and_how_many_rows_a_gain_needs_by_their_formulas",
            "test_rows_of_unequal_size_count_as_so_many_alike", "test_refusals_in_full",
        )
    ],
    f"{L}/statistics/two_sample.py": [f"{T}/test_two_sample.py"],
    f"{L}/batching.py": [f"{T}/test_batching.py"],
    f"{L}/head.py": [f"{T}/test_head.py"],
    f"{L}/lora.py": [
        "tests/invariants/test_lora.py::test_delta_W_against_a_loop",
        "tests/invariants/test_lora.py::test_the_lectures_exercise",
        "tests/invariants/test_lora.py::test_delta_of_fused_experts_against_a_loop",
        "tests/invariants/test_lora.py::test_experts_of_an_adapter_are_found_by_their_names",
        "tests/invariants/test_lora.py::test_parameters_of_an_adapted_matrix",
        *(
            f"tests/invariants/test_merge.py::{name}"
            for name in (
                "test_merged_logits_are_the_adapters[bert-lora]",
                "test_a_sum_is_done_in_float64_and_rounded_once",
                "test_a_merge_in_bfloat16_is_rounded_once_and_its_difference_is_reported",
                "test_merging_a_broken_adapter_is_refused",
                "test_a_nan_is_refused_and_so_is_another_prediction",
                "test_by_hand_names_scale_and_what_was_trained_whole",
                "test_differences_and_comparisons_by_hand",
                "test_what_is_not_plain_lora_is_refused",
                "test_shapes_of_one_adapter",
                "test_the_bases_tensor_under_the_names_that_it_may_have",
                "test_a_merge_says_nothing",
            )
        ),
    ],
    **{f"{L}/plan/{name}.py": [f"{T}/plan/test_numbers.py", f"{T}/plan/test_activations.py"]
       for name in ("activations", "architecture", "cost", "disk", "exercise", "fitting", "parts", "sharding",
                    "training")},
    f"{L}/memory_plan.py": [f"{T}/test_memory.py"],
    f"{L}/seeds.py": [f"{T}/test_seeds.py"],
    f"{L}/layers/active.py": [f"{T}/test_active.py"],
    f"{L}/layers/attention.py": [f"{T}/test_attention.py"],
    f"{L}/layers/bottleneck.py": [f"{T}/test_bottleneck.py"],
    f"{L}/layers/float32_head.py": ["tests/models/test_float32_head.py"],
    f"{L}/layers/fused.py": [f"{T}/test_fused.py"],
    f"{L}/layers/one_token.py": [f"{T}/test_one_token.py"],
    f"{L}/layers/packed.py": [
        f"{T}/test_rollout.py::{name}"
        for name in (
            "test_what_the_packed_form_does_not_describe_goes_the_plain_way", "test_without_onednn_the_same",
            "test_biases_dropout_and_long_ropes_are_not_packed", "test_a_float32_head_is_packed_as_it_is",
            "test_a_packed_run_has_room_for_what_was_asked_and_reads_the_prompts_without_gradients",
            "test_in_bfloat16_keys_and_values_are_kept_in_float32", "test_adapters_on_some_projections_only",
            "test_float32_adapters_beside_weights_in_bfloat16",
            "test_heads_of_another_width_and_weights_in_float64", "test_detail_3_left_padding_leaves_the_logits[llama]",
            "test_who_answers_is_chosen_by_the_form", "test_greedy_equals_generate[llama-ragged]",
        )
    ],
    f"{L}/layers/ragged.py": [f"{T}/test_ragged.py", "tests/invariants/test_ragged.py::test_generation_is_untouched",
                              "tests/invariants/test_ragged.py::test_ragged_equals_plain[llama]"],
    f"{L}/layers/shared_prefix.py": [
        f"tests/invariants/test_shared_prefix.py::{name}"
        for name in (
            "test_attention_is_that_of_each_token_alone", "test_dropout_is_torchs_own", "test_under_peft",
            "test_the_longest_row_with_its_prefix_and_dropout_say_who_does_it", "test_what_the_trunk_is_asked",
            "test_blocks_are_rows_whose_keys_fill_the_same_width",
            "test_what_does_not_fit_or_is_not_there_is_refused_in_full",
            "test_what_rows_share_leaves_each_a_token_of_its_own", "test_equals_plain[llama-prefix]",
            "test_equals_plain[mistral-prefix]", "test_the_models_own_dropout_and_window_are_handed_on",
            "test_bfloat16_prefix_gradients_are_summed_in_float32",
        )
    ],
    f"{L}/layers/two_ways.py": [f"{T}/test_two_ways.py"],
    f"{L}/text/chat.py": [f"{T}/test_chat.py"],
    f"{L}/text/choices.py": [f"{T}/test_choices.py"],
    f"{L}/text/generate.py": [f"{T}/test_generate.py"],
    f"{L}/text/masking.py": [f"{T}/test_masking.py"],
    "tasks/supervised/loop.py": ["tests/keys/test_first_step.py", "tests/tasks/test_supervised_loop.py"],
    "tasks/supervised/shares.py": ["tests/tasks/test_shares.py"],
    "tasks/rl/radar.py": [f"{R}_radar.py"],
    "tasks/rl/alarms.py": [f"{R}_table.py"],
    "tasks/rl/explain.py": [f"{R}_explain.py"],
    "tasks/rl/policy.py": [f"{R}_policy.py"],
    "tasks/rl/clock.py": [f"{R}_table.py::test_phases_are_timed_and_tokens_counted"],
    "tasks/rl/group.py": ["tests/tasks/test_group_loop.py"],
    "tasks/rl/recorder.py": [f"{R}_table.py::test_what_a_run_leaves", f"{R}_table.py::test_the_record_is_what_happened",
                             f"{R}_steps.py::test_a_record_has_what_the_targets_were_made_of"],
    "tasks/rl/score.py": [f"{R}_steps.py", f"{R}_table.py::test_padding_ends_nothing",
                          f"{BY_HAND}::test_weights_and_figures_are_those_of_a_second_computation"],
    "tasks/rl/state.py": [f"{R}_table.py", f"{R}_steps.py", f"{R}_world.py"],
    "tasks/rl/world.py": [f"{R}_world.py"],
    "tasks/rl/scores/given.py": ["tests/tasks/test_scores.py"],
    "tasks/rl/scores/kinds.py": ["tests/tasks/test_scores.py"],
    "tasks/rl/scores/practice.py": ["tests/tasks/test_scores.py"],
    "tasks/rl/episodes.py": [f"{R}_table.py::test_repeats_of_bigrams", f"{R}_steps.py",
                             f"{R}_table.py::test_rows_of_episodes_are_those_of_every_tensor"],
    "tasks/rl/loop.py": [f"{R}_loop.py", f"{R}_table.py", f"{R}_steps.py"],
    **{f"tasks/rl/{name}.py": TABLE for name in ("learn", "ppo")},
}  # fmt: skip

CONFIG = """
[tool.mutmut]
source_paths = {mutated}
also_copy = {read}
only_mutate = {files}
pytest_add_cli_args = ["-m", "not slow", "-p", "no:cacheprovider", "--assert=plain"]
pytest_add_cli_args_test_selection = {tests}
timeout_multiplier = 2.0
timeout_constant = 10.0
use_git_change_detection = false
"""
# decorators that are plain functions of a function, so that `name = decorator(name)` says the same
PLAIN = ("torch.no_grad", "once_differentiable", "torch.amp.custom_fwd", "torch.amp.custom_bwd", "property",
         "contextmanager")  # fmt: skip
KILLED = {"killed", "timeout", "segfault", "suspicious"}
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def measure(room: str, files: list[str]) -> dict[str, dict]:
    """{file: {mutants, killed, survivors: [{function, was, becomes, state}]}} of files that share a folder, by the
    tests of them all. Raises RuntimeError with mutmut's last lines when it did not come to its end."""
    folder = WORK / "-".join([room.replace("/", "."), *(Path(file).stem for file in files)])
    again = bool(os.environ.get("AGAIN")) and unchanged(folder, files)
    if not again:
        prepare(folder, files)
    configure(folder, files)
    # one thread, no other plug-ins, and no path to the unchanged code
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [Path(sys.executable).with_name("mutmut"), "run", "--max-children", os.environ.get("CHILDREN", "1")]
    command += survivors_of_before(folder, files) if again else []
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if run.returncode:
        said = [line for line in (run.stdout + run.stderr).splitlines() if line.strip() and line[0] not in SPINNER]
        raise RuntimeError(f"{room}: mutmut ended with {run.returncode}:\n" + "\n".join(said[-30:]))
    return {file: read(folder, file) for file in files}


def prepare(folder: Path, files: list[str]) -> None:
    """The working folder: a copy of the code, and the tests."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in MUTATED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in READ:
        (folder / name).symlink_to(ROOT / name)
    for file in files:
        (folder / file).write_text(undecorated((ROOT / file).read_text(encoding="utf-8")), encoding="utf-8")


def configure(folder: Path, files: list[str]) -> None:
    """mutmut's configuration, below the project's own."""
    tests = list(dict.fromkeys(test for file in files for test in FILES[file]))
    lists = {"mutated": MUTATED, "read": READ, "files": files, "tests": tests}
    config = CONFIG.format(**{name: json.dumps(list(values)) for name, values in lists.items()})
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(project + config, encoding="utf-8")


def unchanged(folder: Path, files: list[str]) -> bool:
    """Whether the working folder holds these files as they are today."""
    return all(
        (folder / file).exists()
        and (folder / file).read_text(encoding="utf-8") == undecorated((ROOT / file).read_text(encoding="utf-8"))
        for file in files
    )


def survivors_of_before(folder: Path, files: list[str]) -> list[str]:
    """mutmut's names of those that survived. It forgets which tests reach a function, and so finds it anew."""
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.stats import status_by_exit_code

    names = []
    with contextlib.chdir(folder):
        for file in files:
            data = SourceFileMutationData(path=file)
            data.load()
            names += [name for name, code in data.exit_code_by_key.items() if status_by_exit_code[code] not in KILLED]
    (folder / "mutants/mutmut-stats.json").unlink(missing_ok=True)
    return names


def read(folder: Path, file: str) -> dict:
    """What mutmut found in a file of the working folder."""
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.stats import status_by_exit_code

    survivors = []
    with contextlib.chdir(folder):
        data = SourceFileMutationData(path=file)
        data.load()
        states = {name: status_by_exit_code[code] for name, code in data.exit_code_by_key.items()}
        for name, state in states.items():
            if state not in KILLED:
                lines = changed(get_diff_for_mutant(name, path=file))
                survivors.append({**lines, "function": function(name), "state": state})
    return {"mutants": len(states), "killed": len(states) - len(survivors), "survivors": survivors}


def changed(diff: str) -> dict[str, str]:
    """The lines that a mutant changes, before and after, joined by blanks."""
    lines = diff.splitlines()[2:]
    was, becomes = (" ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+")
    return {"was": was, "becomes": becomes}


def function(name: str) -> str:
    """ajuste.x.xǁClassǁmethod__mutmut_3 -> Class.method"""
    return re.sub("^(x_|xǁ)", "", name.rsplit(".", 1)[-1].rsplit("__mutmut_", 1)[0]).replace("ǁ", ".")


def undecorated(source: str) -> str:
    """The source with `@decorator` above a function as `name = decorator(name)` below it: mutmut passes by functions
    with decorators, but for a single @staticmethod."""
    lines = source.splitlines()
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    for node in sorted(functions, key=lambda node: -node.lineno):
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        plain = [text for text in decorators if text.split("(")[0] in PLAIN]
        if not plain or len(plain) + ("staticmethod" in decorators) < len(decorators):
            continue
        indent, said = " " * node.col_offset, node.name
        for text in reversed(decorators):
            said = f"{text}({said})"
        lines.insert(node.end_lineno, f"{indent}{node.name} = {said}")
        first = node.decorator_list[0].lineno - 1
        lines[first : node.lineno - 1] = [f"{indent}@staticmethod"] if "staticmethod" in decorators else []
    return "\n".join(lines) + "\n"


def reason(file: str, survivor: dict, reasons: list[dict]) -> str | None:
    """Why a survivor cannot be killed: the first entry of mutation.toml whose patterns its lines hold."""
    for entry in reasons:
        if re.search(entry.get("file", ""), file) and re.search(entry.get("function", ""), survivor["function"]):
            if re.search(entry.get("was", ""), survivor["was"]) and re.search(entry["becomes"], survivor["becomes"]):
                return entry["reason"]
    return None


INTRO = """# Mutation testing

**{killed} of {mutants} planted faults found in {files} files: {score:.1%}.** `make mutation` measures it (mutmut
{version}, by [benchmarks/mutation.py](../../benchmarks/mutation.py)); `make mutation FILES="kl rl/loop"` measures
some files and keeps the others' rows.

mutmut changes one thing at a time in a function of `ajuste/learning/` or of the training loops (an operator, a number,
a string, an argument, an assignment, a branch) and runs the tests that reach it. Found: a test fails, or runs far
beyond its time. Survived: all pass, or no test reaches the function. Every survivor counts, also one that no test could
find.

Not changed: constants and defaults at the top of a module or in the body of a class, annotations, docstrings, and
`len` and `isinstance`. Functions with decorators are measured without: their working copy says `f = decorator(f)`. Not
measured yet, though they have tests: {missing}.

Each key of a configuration has a test of its own beside these: a value that is no default against its closed form, in
[tests/keys](../../tests/keys/test_first_step.py).

| file | planted | found | survived | score |
|---|---:|---:|---:|---:|
"""


def page(found: dict[str, dict], reasons: list[dict]) -> str:
    """docs/measured/mutation.md."""
    mutants, killed = (sum(one[name] for one in found.values()) for name in ("mutants", "killed"))
    there = [path for folder in LOOKED_AT for path in sorted((ROOT / folder).rglob("*.py"))]
    named = [path.relative_to(ROOT).as_posix() for path in there if path.stat().st_size]
    missing = [file for file in named if file not in found and file not in NOTHING]
    text = INTRO.format(
        killed=killed, mutants=mutants, files=len(found), score=killed / mutants, version=version("mutmut"),
        missing=", ".join(f"`{file}`" for file in missing) or "nothing",
    )  # fmt: skip
    for file, one in sorted(found.items()):
        left, score = one["mutants"] - one["killed"], one["killed"] / max(1, one["mutants"])
        text += f"| {file} | {one['mutants']} | {one['killed']} | {left} | {score:.1%} |\n"
    text += "\n## Survivors and why\n"
    for file, one in sorted(found.items()):
        by_reason: dict[str, list[str]] = {}
        for s in one["survivors"]:
            said = f"`{s['function']}`: `{s['was']}` becomes `{s['becomes']}`".replace("|", "\\|")
            by_reason.setdefault(reason(file, s, reasons) or "no reason yet", []).append(said)
        if by_reason:
            text += f"\n**{file}**\n\n"
        for why, those in by_reason.items():
            text += f"- {why}\n" + "".join(f"  - {said}\n" for said in those)
    return text


def main(names: list[str]) -> int:
    reasons = tomllib.loads(REASONS.read_text(encoding="utf-8"))["survivor"]
    rooms: dict[str, list[str]] = {}
    for file in FILES:
        if not names or any(f"/{file}".endswith(f"/{name}.py") for name in names):
            rooms.setdefault(str(Path(file).parent), []).append(file)
    found: dict[str, dict] = {}
    for room, files in rooms.items():
        measured = measure(room, files)
        known = json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.exists() else {}
        found = {file: one for file, one in (known | measured).items() if file in FILES}
        FOUND.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        PAGE.write_text(page(found, reasons), encoding="utf-8")
        for file in files:
            print(f"{file}: {found[file]['killed']} of {found[file]['mutants']}", flush=True)
            for s in found[file]["survivors"]:
                if reason(file, s, reasons) is None:
                    print(f"    {s['function']}\n      - {s['was']}\n      + {s['becomes']}", flush=True)
    bare = sum(reason(file, s, reasons) is None for file, one in found.items() for s in one["survivors"])
    score = sum(one["killed"] for one in found.values()) / sum(one["mutants"] for one in found.values())
    print(f"score {score:.1%}, {bare} survivors without a reason")
    return int(score < WANTED or bare > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
