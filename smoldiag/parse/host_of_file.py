"""Whose text a file is, by its name and folder: node7/dmesg.txt and node7.log are of node7."""

import re

UNNAMED = "the host"  # of files that are named after a tool, with no folder that names a host
_TOOLS = re.compile(
    r"^(?:dmesg|kern(?:el)?|journal\w*|syslog|nvidia[-_]?smi[\w-]*|smi|topo[\w-]*|lspci[\w-]*|ibv?_?\w*|ibstat\w*|show_gids|fi_info|lsmod|"
    r"dcgmi?\w*|diag|ulimit|env\w*|cmd|command|script|run|launch|job|train|config|nccl|facts|log|out|stdout|stderr)$",
    re.IGNORECASE,
)


def name(where: str) -> str:
    """The file's stem, unless that is a tool's name: then its folder's."""
    *folders, file = re.split(r"[/\\]", where)
    stem = file.split(".")[0]
    if stem and not _TOOLS.match(stem):
        return stem
    return folders[-1] if folders and folders[-1] not in ("", ".", "..") else UNNAMED
