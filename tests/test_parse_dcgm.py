"""dcgmi diag: table and JSON of several versions."""

import json

import pytest

from smoldiag.parse.dcgm import parse

TABLE = """\
Successfully ran diagnostic for group.
+---------------------------+------------------------------------------------+
| Diagnostic                | Result                                         |
+===========================+================================================+
|-----  Metadata  ----------+------------------------------------------------|
| DCGM Version              | 3.3.5                                          |
|-----  Deployment  --------+------------------------------------------------|
| Denylist                  | Pass                                           |
| Persistence Mode          | Fail                                           |
| Warning                   | Persistence mode for GPU 2 is disabled.        |
+-----  Integration  -------+------------------------------------------------+
| PCIe                      | Pass - All                                     |
+-----  Hardware  ----------+------------------------------------------------+
| GPU Memory                | Fail - GPU: 3                                  |
| Warning                   | GPU 3 There was a memory error. Reset the GPU. |
| Pulse Test                | Skip - All                                     |
+---------------------------+------------------------------------------------+
"""
DCGM3 = {
    "DCGM GPU Diagnostic": {
        "test_categories": [
            {
                "category": "Hardware",
                "tests": [
                    {
                        "name": "GPU Memory",
                        "results": [
                            {"gpu_ids": "0,1", "status": "PASS"},
                            {"gpu_id": "3", "status": "FAIL", "warnings": ["a memory error"]},
                        ],
                    },
                    None,
                ],
            }
        ]
    }
}
DCGM4 = {
    "DCGM Diagnostic": {
        "test_categories": [
            {
                "tests": [
                    {
                        "name": "memory",
                        "results": [
                            {"entity_group": "GPU", "entity_id": 0, "status": "Pass"},
                            {
                                "entity_group": "GPU",
                                "entity_id": 3,
                                "status": "Fail",
                                "warnings": [{"warning": "a memory error", "error_id": 4}],
                            },
                        ],
                        "test_summary": {"status": "Fail"},
                    },
                    {"name": "software", "results": [{"entity_group": "GPU", "entity_id": 0, "status": "Pass"}]},
                ]
            }
        ]
    }
}


def test_the_table() -> None:
    memory = "fail: GPU 3 There was a memory error. Reset the GPU."
    assert parse(TABLE) == {
        "Denylist": "pass",
        "Persistence Mode": "fail",
        "PCIe": "pass",
        "GPU Memory": "fail",
        "GPU Memory:3": "fail",
        "Pulse Test": "skip",
    } | {
        "Persistence Mode": "fail: Persistence mode for GPU 2 is disabled.",
        "GPU Memory": memory,
        "GPU Memory:3": memory,
    }


def test_json_of_dcgm_3() -> None:
    text = "WARNING: something first\n" + json.dumps(DCGM3) + "\n"
    assert parse(text) == {"GPU Memory": "fail: a memory error", "GPU Memory:3": "fail: a memory error"}


def test_json_of_dcgm_4() -> None:
    assert parse(json.dumps(DCGM4)) == {
        "memory": "fail: a memory error",
        "memory:3": "fail: a memory error",
        "software": "pass",
    }


@pytest.mark.parametrize(
    "text", ["", "no such command", "{", "{}", "[" * 5000 + "{", '{"a": [{"name": 1, "results": 3}]}']
)
def test_what_is_no_output_of_dcgmi_gives_nothing(text: str) -> None:
    assert parse(text) == {}
