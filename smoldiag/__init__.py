"""Distributed-training diagnostics and NCCL troubleshooting."""

__version__ = "0.1.0"
