"""Rules that judge a job script."""

from smoldiag.parse import script
from smoldiag.rules import Known
from tests.rules.known import Facts

MEGATRON = "python pretrain_gpt.py --num-layers 2 --train-iters 1000 --seq-length 10 --global-batch-size 10"
WHOLE = f"{MEGATRON} --save /lustre/c --load /lustre/c --save-interval 100 --eval-iters 5 --tensorboard-dir /lustre/t"


def job(*lines: str) -> Known:
    return Known(script=script.commands("\n".join(("#!/bin/bash", *lines)), file="job.sbatch"))


LIMIT, NODES = "#SBATCH --time=60", "#SBATCH --nodes=32"

CASES: list[tuple[str, Facts, list[str]]] = [
    ("JOB001", job("rm -rf /lustre/c", WHOLE), ["error"]),
    ("JOB001", job("rm -rf /lustre/d", WHOLE), []),
    ("JOB002", job(WHOLE.replace("/lustre/c", "/tmp/c")), ["warning"]),
    ("JOB002", job(WHOLE), []),
    ("JOB003", job("#SBATCH --requeue", WHOLE.replace("--load /lustre/c", "")), ["warning"]),
    ("JOB003", job("#SBATCH --requeue", WHOLE), []),
    ("JOB004", job(WHOLE.replace("--eval-iters 5", "")), ["info"]),
    ("JOB004", job(WHOLE), []),
    ("JOB005", job(WHOLE.replace("--tensorboard-dir /lustre/t", "")), ["info"]),
    ("JOB005", job(WHOLE), []),
    ("JOB006", job("DATA_TOKENS=50K", WHOLE), ["warning"]),
    ("JOB006", job("DATA_TOKENS=200K", WHOLE), []),
    ("JOB007", job(NODES, WHOLE), ["info"]),
    ("JOB007", job("#SBATCH -N 2", WHOLE), []),
    ("JOB008", job(WHOLE.replace("--save-interval 100", "--save-interval 1000")), ["warning"]),
    ("JOB008", job(WHOLE), []),
    ("JOB009", job(LIMIT, f"{WHOLE} --exit-duration-in-mins 90"), ["warning"]),
    ("JOB009", job(LIMIT, f"{WHOLE} --exit-duration-in-mins 50"), []),
]
