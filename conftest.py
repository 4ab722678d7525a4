"""Loaded by every test of the repository, the roles' own ones included. What it does is in tests/support."""

pytest_plugins = ["support.needs", "support.leaks", "support.tree"]
