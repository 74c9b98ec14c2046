"""Many programs of the stateful test: ``python -m tests.stateful_run --examples 2000 --seed 1``.

Works in chunks of 100 programs, each with a seed of its own, and can go on where it was stopped
(``--state FILE``). A failure prints its program and ends the run with a traceback. ``--engine gcs``
runs the programs on a fake bucket; they share one server.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import fake_gcs
from hypothesis import seed
from hypothesis.stateful import run_state_machine_as_test
from test_stateful import CheckedMachine, machine_settings

CHUNK = 100


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("disk", "gcs"), default="disk")
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--state", type=Path, help="file that remembers which chunks are done")
    options = parser.parse_args(argv)
    key = f"{options.seed}/{options.steps}" + "/gcs" * (options.engine == "gcs")
    known: dict[str, int] = {}
    if options.state and options.state.exists():
        known = json.loads(options.state.read_text())
    done = known.get(key, 0)
    began = time.monotonic()
    with ExitStack() as stack:
        where: dict[str, Any] = {}
        if options.engine == "gcs":
            server = stack.enter_context(fake_gcs.start())
            os.environ.update(server.environ())
            where = {"engines": ("gcs",), "server": server}
        for chunk in range(done // CHUNK, -(-options.examples // CHUNK)):
            examples = min(CHUNK, options.examples - chunk * CHUNK)
            number = options.seed * 100_000 + chunk
            machine = type("Machine", (CheckedMachine,), where)
            seed(number)(machine)
            chosen = machine_settings(examples, options.steps, database=None, print_blob=False)
            print(f"chunk {chunk}: {examples} programs, seed {number}", flush=True)
            run_state_machine_as_test(machine, settings=chosen)
            done = chunk * CHUNK + examples
            if options.state:
                known[key] = done
                options.state.write_text(json.dumps(known))
    print(
        f"stateful engine={options.engine} examples={done} steps={options.steps}"
        f" seed={options.seed} failures=0 seconds={time.monotonic() - began:.0f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
