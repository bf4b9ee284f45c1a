"""The lint of job scripts: real ones that are well, and each way of losing a run."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoldiag import environment, rules
from smoldiag.findings import Finding, Severity
from smoldiag.model import job_script as model
from smoldiag.parse import script
from smoldiag.rules import Known

SCRIPTS = sorted((Path(__file__).parent / "scripts").iterdir())
HEAD = "#!/bin/bash\n#SBATCH --nodes=4\n#SBATCH --requeue\n#SBATCH --time=10:00:00\n"
MEGATRON = """
ARGS="--num-layers 32 --micro-batch-size 1 --global-batch-size 512 --seq-length 4096 --train-iters 10000
      --save-interval 500 --eval-iters 10 --tensorboard-dir tb"
srun python pretrain_gpt.py $ARGS --save $CKPT"""


def linted(text: str) -> list[Finding]:
    read = script.commands(text, file="job.sbatch")
    outcomes = list(rules.run(Known(script=read), rules.select(["JOB"])))
    assert not [o for o in outcomes if o.crashed], outcomes
    return [f for o in outcomes for f in o.findings]


def codes(text: str, *, least: Severity = Severity.WARNING) -> list[str]:
    kept = {Severity.ERROR} if least is Severity.ERROR else {Severity.ERROR, Severity.WARNING}
    return [f.code for f in linted(text) if f.severity in kept or least is Severity.INFO]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_that_are_well_have_nothing_above_info(path: Path) -> None:
    assert codes(path.read_text()) == []
    assert model.training(environment.job_script(str(path)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("megatron", {"/lustre/$USER/gpt-7b/checkpoints"}),
        ("torchrun", {"/fsx/$USER/runs/$SLURM_JOB_NAME"}),
        ("accelerate", {"$SCRATCH/accelerate-run"}),
        ("torchtitan", {"/shared/outputs"}),
        ("nanotron", set()),
        ("lightning", {"/shared/lit"}),
        ("local-then-shared", {"$SLURM_TMPDIR/ckpt"}),
    ],
)
def test_where_checkpoints_go_is_read(name: str, expected: set[str]) -> None:
    path = next(p for p in SCRIPTS if p.stem == name)
    assert set(model.checkpoint_paths(environment.job_script(str(path)))) == expected


@pytest.mark.parametrize(
    ("name", "nodes", "seconds"),
    [("megatron", 16, 172800), ("torchrun", 4, 28800), ("accelerate", 2, 43200), ("nanotron", 48, None)],
)
def test_what_is_asked_of_the_scheduler_is_read(name: str, nodes: int, seconds: float | None) -> None:
    read = environment.job_script(str(next(p for p in SCRIPTS if p.stem == name)))
    assert (model.num_nodes(read), model.limit_s(read)) == (nodes, seconds)


DELETING = [
    "rm -rf $CKPT",
    'rm -rf "${CKPT}"',
    "rm -fr ${CKPT:?}/*",
    "srun rm -rf $CKPT",
    'rm -rf "${CKPT%/}"',
    "rm -r /lustre/me/run",
    "rm -rf /lustre/me/run/",
    "trap 'rm -rf $CKPT' EXIT",
    "find $CKPT -delete",
    "cd /lustre && rm -rf /lustre/me/run/ckpt",
    "sudo rm --recursive -f /lustre/me/run/ckpt",
]


@pytest.mark.parametrize("line", DELETING)
@pytest.mark.parametrize("before", [True, False])
def test_a_command_that_deletes_the_checkpoints_is_found(line: str, before: bool) -> None:
    train = MEGATRON + " --load $CKPT\n"
    lines = f"{line}\n{train}" if before else f"{train}{line}\n"
    (finding,) = [f for f in linted(f"{HEAD}CKPT=/lustre/me/run/ckpt\n{lines}") if f.severity is Severity.ERROR]
    assert (finding.code, finding.cause) == ("JOB001", "checkpoint-deleted")


@pytest.mark.parametrize(
    "line",
    [
        "rm -rf $CKPT/step_100",
        "rm -rf /lustre/me/run/ckpt-old",
        "rm -rf /lustre/me/run/logs",
        "rm -f $CKPT/latest.tmp",
        "rm -rf $TMPDIR/cache",
        "# rm -rf $CKPT",
        "echo rm -rf $CKPT",
        "find $CKPT -mtime +7 -name 'step_*' -delete",
        "mkdir -p $CKPT && ls $CKPT",
        'if [ "$FRESH" = 1 ]; then\n  rm -rf $CKPT\nfi',
    ],
)
def test_commands_that_leave_the_checkpoints_alone(line: str) -> None:
    assert codes(f"{HEAD}CKPT=/lustre/me/run/ckpt\n{line}\n{MEGATRON} --load $CKPT\n") == []


def test_a_folder_that_was_copied_may_go() -> None:
    train = f"{HEAD}CKPT=/lustre/me/run/ckpt\n{MEGATRON} --load $CKPT\n"
    assert codes(f"{train}s5cmd cp $CKPT s3://bucket/run\nrm -rf $CKPT\n") == []
    assert codes(f"{train}aws s3 sync $CKPT s3://bucket/run && rm -rf $CKPT\n") == []
    assert codes(f"{train}rm -rf $CKPT\n") == ["JOB001"]


@pytest.mark.parametrize("folder", ["/tmp/ckpt", "$SLURM_TMPDIR/run", "${TMPDIR}/x", "/dev/shm/c"])
def test_checkpoints_on_the_node_are_found(folder: str) -> None:
    text = f"{HEAD}CKPT={folder}\n{MEGATRON} --load $CKPT\n"
    assert codes(text) == ["JOB002"]
    assert codes(f"{text}srun rsync -a $CKPT /lustre/keep/\n") == []


def test_a_restart_that_begins_at_zero_is_found() -> None:
    assert codes(f"{HEAD}CKPT=/lustre/c\n{MEGATRON}\n") == ["JOB003"]
    assert codes(f"{HEAD}CKPT=/lustre/c\n{MEGATRON} --load $CKPT\n") == []
    once = HEAD.replace("#SBATCH --requeue\n", "")
    assert codes(f"{once}CKPT=/lustre/c\n{MEGATRON}\n") == []


OWN = "torchrun --nproc_per_node 8 train.py --out_dir /fsx/r --lr 3e-4 --layers 12 --wandb x --eval_every 100"


@pytest.mark.parametrize(
    "more", ["", "--resume false", "--resume_from_checkpoint=none", "--no-resume", "--from_scratch"]
)
def test_a_program_of_one_s_own_that_begins_at_zero_is_found(more: str) -> None:
    assert codes(f"{HEAD}{OWN} {more}\n") == ["JOB003"]


@pytest.mark.parametrize(
    "more", ["--resume", "--resume auto", "--load_ckpt last", "--init_from=resume", "--auto-resume"]
)
def test_a_program_of_one_s_own_that_resumes_is_well(more: str) -> None:
    assert codes(f"{HEAD}{OWN} {more}\n") == []


HF = "torchrun --nproc_per_node 8 run_clm.py --per_device_train_batch_size 4 --output_dir /fsx/out --report_to wandb "


def test_an_output_folder_that_is_overwritten_is_found() -> None:
    assert codes(f"{HEAD}{HF} --overwrite_output_dir --eval_strategy steps") == ["JOB003"]
    assert codes(f"{HEAD}{HF} --overwrite_output_dir --resume_from_checkpoint true --eval_strategy steps") == []


def test_a_configuration_elsewhere_leaves_it_unknown() -> None:
    read = script.commands(f"{HEAD}srun torchrun train.py --config run.yaml\n", file="job.sbatch")
    outcomes = {o.rule.code: o for o in rules.run(Known(script=read), rules.select(["JOB"]))}
    unknown = {c for c, o in outcomes.items() if o.skipped}
    assert unknown == {f"JOB00{i}" for i in (1, 2, 3, 4, 5, 6, 8, 9)}
    assert outcomes["JOB001"].skipped == "the script does not say where checkpoints go"


def test_missing_evaluation_and_metrics_are_worth_knowing() -> None:
    bare = MEGATRON.replace("--eval-iters 10 --tensorboard-dir tb", "") + " --load $CKPT"
    assert codes(f"{HEAD}CKPT=/l/c\n{bare}\n", least=Severity.INFO) == ["JOB004", "JOB005"]
    off = MEGATRON.replace("--eval-iters 10", "--eval-iters 0") + " --load $CKPT"
    assert codes(f"{HEAD}CKPT=/l/c\n{off}\n", least=Severity.INFO) == ["JOB004"]
    assert codes(f"{HEAD}CKPT=/l/c\n{MEGATRON} --load $CKPT\n", least=Severity.INFO) == []


@pytest.mark.parametrize("said", ["DATASET_TOKENS=10B", "DATA_TOKENS=1e10", "# the dataset has 10B tokens"])
def test_more_tokens_than_data_is_found(said: str) -> None:
    text = f"{HEAD}{said}\nCKPT=/lustre/c\n{MEGATRON} --load $CKPT\n"
    (finding,) = [f for f in linted(text) if f.code == "JOB006"]
    assert "need 2.097e+10 tokens, the data has 1e+10: 2.1 passes" in finding.message
    assert codes(text.replace("10B", "30B").replace("1e10", "30e9")) == []


def test_batches_of_all_gpus_count() -> None:
    head = "#!/bin/bash\n#SBATCH --nodes=4\n#SBATCH --gres=gpu:h100:8\n# dataset: 1.2B tokens\n"
    text = f"{head}{HF} --gradient_accumulation_steps 2 --block_size 2048 --max_steps 4000 --eval_strategy steps\n"
    (finding,) = [f for f in linted(text) if f.code == "JOB006"]
    assert "need 2.097e+09 tokens, the data has 1.2e+09" in finding.message


def test_steps_that_do_not_fit_the_time_limit_are_found() -> None:
    text = f"{HEAD}# 2.5 s per step\n{OWN} --max_steps 30000"
    assert codes(f"{text}\n") == ["JOB003", "JOB009"]
    assert codes(f"{text} --resume auto\n") == []
    assert codes(text.replace("30000", "10000") + "\n") == ["JOB003"]


def test_a_checkpoint_at_the_end_only_is_found() -> None:
    late = MEGATRON.replace("--save-interval 500", "--save-interval 20000")
    assert codes(f"{HEAD}CKPT=/l/c\n{late} --load $CKPT\n") == ["JOB008"]
    assert codes(f"{HEAD}{HF} --save_strategy no --eval_strategy steps") == ["JOB008"]


def test_a_time_limit_before_the_own_end_is_found() -> None:
    text = f"{HEAD}CKPT=/l/c\n{MEGATRON} --load $CKPT --exit-duration-in-mins"
    assert codes(f"{text} 600\n") == ["JOB009"]
    assert codes(f"{text} 570\n") == []


def test_spare_nodes() -> None:
    text = "#!/bin/bash\n#SBATCH -N 64\nsrun torchrun --nnodes {} train.py\n"
    assert codes(text.format(64), least=Severity.INFO) == ["JOB007"]
    assert codes(text.format(62), least=Severity.INFO) == []
    assert codes(text.format("62:64"), least=Severity.INFO) == []


def test_secrets_are_not_kept() -> None:
    text = 'export HF_TOKEN=hf_abcdefghijklmnopqrstuvwxyz012345\nX="--wandb-key 0123456789abcdef"\npython train.py $X'
    read = script.commands(text, file="job.sh")
    assert "0123456789abcdef" not in str(read)
    assert "abcdefghijklmnop" not in str(read)


PIECES = [
    "rm -rf ",
    "$CKPT",
    "--save ",
    "if ",
    "fi\n",
    "\n",
    "$(",
    ")",
    '"',
    "'",
    "trap ",
    "(",
    " ",
    "srun python train.py ",
]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
@settings(max_examples=200, deadline=None)
def test_whatever_is_in_a_script_it_is_judged(text: str) -> None:
    assert {f.code[:3] for f in linted(text)} <= {"JOB"}
