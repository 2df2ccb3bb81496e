# SPDX-License-Identifier: MIT
"""What the scripts share that drive one of our programs and compare with a library: named cases, each run in a folder of its own."""
import argparse
import functools
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.path.join(HERE, "..", "data")


def folder_of(model):
    """The diffusers folder of a model of tests/data."""
    return os.path.join(DATA, model, "diffusers")


def expect(good, what):
    if not good:
        raise SystemExit(what)


class Run:
    """Our programs, and a folder to work in."""

    def __init__(self, programs, work):
        self.programs, self.work = programs, work

    def path(self, name):
        return os.path.join(self.work, name)

    def program(self, name, *arguments):
        """Runs a program that has to succeed; what it printed."""
        done = subprocess.run([os.path.join(self.programs, name), *arguments], capture_output=True, text=True)
        expect(done.returncode == 0, f"{name}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout


class Cases:
    """The cases of a script, by name. In a `grouped` one the first word of a name is its group: `list` prints the groups, and a group runs all of its
    cases."""

    def __init__(self, grouped=False):
        self.grouped, self.functions = grouped, {}

    def __call__(self, function, *arguments, name=None):
        """Registers function(run, …), which gives a line about what it saw; also a decorator."""
        self.functions[name or function.__name__.replace("_", "-")] = functools.partial(function, *arguments)
        return function

    def chosen(self, name):
        return [each for each in self.functions if each == name or (self.grouped and each.startswith(name + "-"))]

    def main(self):
        parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("case")
        parser.add_argument("--bin")
        parser.add_argument("--work")
        options = parser.parse_args()
        if options.case in ("list", "cases"):
            groups = dict.fromkeys(name.partition("-")[0] for name in self.functions)
            print("\n".join(groups if self.grouped and options.case == "list" else self.functions))
            return 0
        chosen = self.chosen(options.case)
        if not chosen:
            parser.error(f"no case {options.case}")
        said = []
        for name in chosen:
            shutil.rmtree(options.work, ignore_errors=True)
            os.makedirs(options.work)
            try:
                said.append(self.functions[name](Run(options.bin, options.work)))
            except SystemExit as error:
                raise SystemExit(f"{name}: {error}") from None
            if len(chosen) > 1:
                print(f"{name}: {said[-1]}")
        shutil.rmtree(options.work)
        print(said[0] if len(chosen) == 1 else f"{len(chosen)} cases passed")
        return 0
