#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs a test script in the Python environment of the oracles, or fails with one sentence that says why it could not.

usage: oracle.py VENV MODULE[,MODULE…] -- SCRIPT ARGUMENTS…
"""

import os
import pathlib
import subprocess
import sys


def main():
    if len(sys.argv) < 5 or sys.argv[3] != "--":
        raise SystemExit(__doc__)
    venv, modules, command = pathlib.Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[4:]
    python = venv / "bin" / "python"
    if not os.access(python, os.X_OK):
        print(f"This test needs {', '.join(modules)} and there is no {python}: run scripts/test, which installs them, "
              "or leave them out with --without.")
        return 1
    for module in modules:
        probe = subprocess.run([python, "-c", f"import {module}"], capture_output=True, text=True)
        if probe.returncode:
            last = (probe.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"This test needs the Python package {module} and {python} cannot import it ({last}): run scripts/test, "
                  "which installs it, or leave it out with --without.")
            return 1
    return subprocess.run([python, *command]).returncode


if __name__ == "__main__":
    sys.exit(main())
