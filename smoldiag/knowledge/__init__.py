"""Data with sources."""
