"""What scripts, command lines, Dockerfiles and YAML set."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoldiag.parse.script import kind, parse


def found(text: str, file: str = "job.sh") -> dict[str, str]:
    return {v.name: v.value for v in parse(text, file=file)}


def where(text: str, file: str = "job.sh") -> dict[str, str]:
    return {v.name: v.origin for v in parse(text, file=file)}


@pytest.mark.parametrize(
    ("text", "set_to"),
    [
        ("export NCCL_A=1", "1"),
        ("export NCCL_A='a b'", "a b"),
        ('export NCCL_A="a b" # not "this', "a b"),
        ("  export NCCL_B=2 NCCL_A=1", "1"),
        ("NCCL_A=1 python train.py", "1"),
        ("NCCL_A=1; export NCCL_A", "1"),
        ("NCCL_A=1", None),  # a shell variable, which programs do not get
        ("export NCCL_A=0\nNCCL_A=1", "1"),
        ("set -a\nNCCL_A=1", "1"),
        ("set -o allexport\nNCCL_A=1", "1"),
        ("declare -x NCCL_A=1", "1"),
        ("setenv NCCL_A 1", "1"),
        ("export NCCL_A=1\nunset NCCL_A", None),
        ("# export NCCL_A=1", None),
        ("echo '# it' && export NCCL_A=1", "1"),
        ("env NCCL_A=1 python train.py", "1"),
        ("exec env -i NCCL_A=1 python", "1"),
        ("if true; then export NCCL_A=1; fi", "1"),
        ("(cd x && export NCCL_A=1)", "1"),
        ("foo() { export NCCL_A=1; }", "1"),
        ("IF=eth0\nexport NCCL_A=$IF", "eth0"),
        ("export NCCL_A=${NCCL_A:-INFO}", "INFO"),
        ("export NCCL_A=$UNKNOWN", "$UNKNOWN"),
        ("export NCCL_A=$(hostname | head -n 1)", "$(...)"),
        ("export NCCL_A=`hostname`", "$(...)"),
        ("out=$(NCCL_A=1 srun ./a | tail -n 1)", "1"),
        ('out="$(\n  NCCL_A=1 srun ./a)"', "1"),
        ("export NCCL_A=$((8 * 4))", "$(...)"),
        ("export NCCL_A=x$(echo ')' )y", "x$(...)y"),
        ("export NCCL_A=0\nexport NCCL_A+=,1", "0,1"),
        ("mpirun -np 2 -x NCCL_A=1 -x PATH ./a", "1"),
        ("/opt/ompi/bin/mpirun -x NCCL_A='a b' ./a", "a b"),
        ("mpiexec -genv NCCL_A 1 ./a", "1"),
        ("mpirun -env NCCL_A=1 ./a", "1"),
        ("srun --export=ALL,NCCL_A=1 ./a", "1"),
        ("srun --export ALL,NCCL_A=1,NCCL_B=2 ./a", "1"),
        ("#SBATCH --export=ALL,NCCL_A=1", "1"),
        ("#PBS -v NCCL_A=1", None),  # an option of qsub
        ("srun bash -c 'export NCCL_A=1; torchrun x.py'", "1"),
        ('srun -N 2 bash -lc "NCCL_A=1 torchrun x.py"', "1"),
        ("docker run --rm -e NCCL_A=1 image", "1"),
        ("podman run --env NCCL_A=1 image", "1"),
        ("docker run --env=NCCL_A=1 image", "1"),
        ("apptainer exec --env NCCL_B=2,NCCL_A=1 image cmd", "1"),
        ("sudo NCCL_A=1 ./a", "1"),
        ("NCCL_A=1 ./a > out 2>&1 &", "1"),
        ("NCCL_A=1 torchrun --nproc-per-node 8 x.py | tee log", "1"),
    ],
)
def test_a_shell_s_ways_to_set_a_variable(text: str, set_to: str | None) -> None:
    assert found(text).get("NCCL_A") == set_to


def test_lines_are_those_of_the_file() -> None:
    text = """#!/bin/bash
#SBATCH --nodes=4 --ntasks-per-node=8

export NCCL_A=1 \\
       NCCL_B=2
mpirun -np 4 \\
    -x NCCL_C=3 \\
    ./a
cat > inner.sh <<'EOF'
export NCCL_D=4
EOF
srun bash -c '
export NCCL_E=5
'
"""
    assert where(text, "a/job.sbatch") == {
        "NCCL_A": "a/job.sbatch:4",
        "NCCL_B": "a/job.sbatch:5",
        "NCCL_C": "a/job.sbatch:7",
        "NCCL_D": "a/job.sbatch:10",
        "NCCL_E": "a/job.sbatch:13",
        "SLURM_NNODES": "a/job.sbatch:2",
        "SLURM_NTASKS_PER_NODE": "a/job.sbatch:2",
    }


def test_the_last_value_counts_and_the_others_are_kept() -> None:
    (variable,) = parse("export NCCL_A=1\nexport NCCL_A=2\n", file="x.sh")
    assert (variable.value, variable.origin, variable.shadowed) == ("2", "x.sh:2", ("x.sh:1 (1)",))


def test_here_documents_for_nccl_and_for_others() -> None:
    text = "cat >> /etc/nccl.conf <<EOF\nNCCL_A=1\nEOF\npython - <<EOF\nexport NCCL_B=1\nEOF\nexport NCCL_C=3\n"
    assert found(text) == {"NCCL_A": "1", "NCCL_C": "3"}


def test_secrets_and_what_does_not_concern_training_are_left_out() -> None:
    assert found("export NCCL_TOKEN=hunter2hunter2 AWS_KEY=1 HF_TOKEN=x") == {"NCCL_TOKEN": "[redacted]"}


def test_dockerfile() -> None:
    text = """# syntax=docker/dockerfile:1
FROM nvcr.io/nvidia/pytorch:25.01-py3 AS base
ARG INTERFACE=eth0
ENV NCCL_A=1 NCCL_B="a b" \\
    # a comment in between
    NCCL_C=3
ENV NCCL_SOCKET_IFNAME $INTERFACE
FROM ubuntu AS other
ENV NCCL_X=1
FROM base
RUN export NCCL_Y=2
ENTRYPOINT mpirun -x NCCL_D=4 ./a
"""
    assert found(text, "Dockerfile") == {
        "NCCL_A": "1",
        "NCCL_B": "a b",
        "NCCL_C": "3",
        "NCCL_SOCKET_IFNAME": "eth0",
        "NCCL_D": "4",
    }
    assert where(text, "Dockerfile")["NCCL_C"] == "Dockerfile:6"


KUBERNETES = """apiVersion: v1
kind: Pod
spec:
  containers:
    - name: NCCL_NOT_A_VARIABLE
      image: x
      env:
        - name: NCCL_A
          value: "1"  # a comment
        - value: '2'
          name: NCCL_B
        - {name: NCCL_C, value: "mlx5_0,mlx5_1"}
        - name: NCCL_D
          valueFrom:
            fieldRef:
              fieldPath: spec.nodeName
      command: ["bash", "-c", "export NCCL_E=5; torchrun x.py"]
      args:
        - |
          # it's a script
          export NCCL_F=6
          NCCL_G=7 python x.py
        - NCCL_H=8
---
kind: ConfigMap
data:
  NCCL_I: "9"
"""


def test_kubernetes() -> None:
    assert found(KUBERNETES, "pod.yaml") == {
        "NCCL_A": "1",
        "NCCL_B": "2",
        "NCCL_C": "mlx5_0,mlx5_1",
        "NCCL_D": "$(...)",
        "NCCL_E": "5",
        "NCCL_F": "6",
        "NCCL_G": "7",
        "NCCL_H": "8",
        "NCCL_I": "9",
    }
    assert where(KUBERNETES, "pod.yaml")["NCCL_F"] == "pod.yaml:21"
    assert where(KUBERNETES, "pod.yaml")["NCCL_B"] == "pod.yaml:10"


def test_compose() -> None:
    text = """services:
  a:
    environment:
      - NCCL_A=1
      - "NCCL_B=a b"
  b:
    environment:
      NCCL_C: on
      NCCL_D: null  # not set
"""
    assert found(text, "compose.yml") == {"NCCL_A": "1", "NCCL_B": "a b", "NCCL_C": "on"}


def test_nccl_s_own_files_keep_quotes_and_the_first_line() -> None:
    assert found('NCCL_A="1"\nNCCL_A=2\n#NCCL_B=1\n', "etc/nccl.conf") == {"NCCL_A": '"1"'}


def test_files_of_assignments() -> None:
    assert found("NCCL_A=1\nNCCL_B=2\n", "job.env") == {"NCCL_A": "1", "NCCL_B": "2"}


@pytest.mark.parametrize(
    ("text", "file", "is_a"),
    [
        ("", "Dockerfile.gpu", "dockerfile"),
        ("FROM x\nENV A=1\n", "stdin", "dockerfile"),
        ("apiVersion: v1\n", "stdin", "yaml"),
        ("", "a/values.yaml", "yaml"),
        ("apiVersion: v1\n", "Dockerfile.pod", "yaml"),
        ("", "/etc/nccl.conf", "conf"),
        ("#!/bin/bash\n", "job.sbatch", "shell"),
        ("mpirun -x A=1 ./a", "stdin", "shell"),
    ],
)
def test_kinds_of_files(text: str, file: str, is_a: str) -> None:
    assert kind(text, file) == is_a


FRAGMENTS = [
    *"'\"`$(){}|&;<>#\\\n= :-[]",
    "export ",
    "NCCL_A=1",
    "<<EOF",
    "EOF",
    "env:",
    "- name: ",
    "value: ",
    "ENV ",
    "|",
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join), st.sampled_from(["a.sh", "a.yml", "Dockerfile"]))
@settings(max_examples=300, deadline=None)
def test_whatever_is_in_a_file_it_is_read(text: str, file: str) -> None:
    assert parse(text, file=file) == parse(text, file=file)


@pytest.mark.parametrize("line", ["export NCCL_A='open", 'echo "$(x', "a \\", "- |", "cat <<EOF", "ENV A=1 \\"])
@pytest.mark.parametrize("file", ["a.sh", "a.yml", "Dockerfile"])
def test_long_and_broken_files_are_read_in_time(line: str, file: str) -> None:
    start = time.perf_counter()
    parse(f"{line}\n" * 20_000, file=file)
    assert time.perf_counter() - start < 5


def test_a_slash_at_the_end_is_taken_away_and_a_must_is_put_in() -> None:
    text = "A=/x/\nexport NCCL_A=${A%/}\nexport NCCL_B=${A:?}\nexport NCCL_C=${B%/}\n"
    assert found(text) == {"NCCL_A": "/x", "NCCL_B": "/x/", "NCCL_C": "${B%/}"}
