"""The configuration: what the operator writes, and the share of it that each role may see.

Two sides that must not meet in one process without need:

* init, master and the operator's command import `pyttpd.config.loader` (TOML, the schema, error messages);
* every other role imports `pyttpd.config.shares` only, which knows neither files nor TOML.

So this package imports nothing by itself.
"""
