"""The reference FSDP2 trainer."""
