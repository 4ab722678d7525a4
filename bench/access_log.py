"""What the access log costs: the whole tree with `access_log` off, "combined" and "json", in turns within one run.

    .venv-bench/bin/python bench/access_log.py [--rounds 5] [--seconds 3]

WSGI "Hello, world!", all processes of a tree on core 1, the client (wrk, 32 connections) on core 0, one worker; the
log goes to a file. Beside requests/s it prints what a request costs all processes of the tree in processor time, which
a noisy machine falsifies less. At the end it is counted that each answer has its line.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys

from spine import CONFIG, HERE, SERVER_CORE, measure, wait_for
from suite import household
from suite.machine import free_ports, processor_time

FORMS = ("off", "combined", "json")


def main() -> None:
    """Start the trees, measure in turns, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    options = parser.parse_args()
    first = free_ports(16 * len(FORMS))
    ports = {form: first + 16 * number for number, form in enumerate(FORMS)}
    folder = household.new_folder()
    (folder / "application").mkdir()
    shutil.copy(HERE / "hello.py", folder / "application")
    trees: list[subprocess.Popen[bytes]] = []
    results: dict[str, list[float]] = {form: [] for form in FORMS}
    costs: dict[str, list[float]] = {form: [] for form in FORMS}
    try:
        for form, port in ports.items():
            own = folder / form
            logs = own / "logs"
            logs.mkdir(parents=True)
            if os.geteuid() == 0:
                os.chown(logs, 20001, 20001)
            text = CONFIG.format(
                folder=own, port=port, metrics=port + 4, root=folder / "application", access_log=form
            )
            text = text.replace("pool =", f'access_log_file = "{logs}/access.log"\npool =')
            (own / "bench.toml").write_text(text)
            command = ["taskset", "-c", SERVER_CORE, sys.executable, "-I", "-m", "pyttpd_init", "--plain"]
            trees.append(subprocess.Popen([*command, "--config", str(own / "bench.toml")]))
            wait_for(port)
        for number in range(options.rounds):
            for form, port in ports.items():
                pid = trees[FORMS.index(form)].pid
                before = processor_time(pid)
                results[form].append(measure(port, options.seconds, close=False))
                requests = results[form][-1] * options.seconds
                costs[form].append((processor_time(pid) - before) / requests * 1e6)
            said = (f"{form} {results[form][-1]:.0f}/s {costs[form][-1]:.1f} us" for form in FORMS)
            print(f"round {number + 1}:", *said, sep="  ")
    finally:
        for tree in trees:
            tree.send_signal(signal.SIGTERM)
        for tree in trees:
            tree.wait(35)
        for form in FORMS[1:]:
            with open(folder / form / "logs/access.log", "rb") as log:
                lines = sum(1 for _ in log)
            print(f"{form}: {lines} lines, {sum(results[form]) * options.seconds:.0f} answers, about")
        shutil.rmtree(folder, ignore_errors=True)
    rates = {form: statistics.median(values) for form, values in results.items()}
    times = {form: statistics.median(values) for form, values in costs.items()}
    print("median:", *(f"{form} {rates[form]:.0f}/s {times[form]:.2f} us" for form in FORMS), sep="  ")
    for form in FORMS[1:]:
        by_time = times["off"] / times[form]
        print(f"{form} / off: {rates[form] / rates['off']:.2f}, by processor time {by_time:.2f}")


if __name__ == "__main__":
    with household.kept():
        main()
