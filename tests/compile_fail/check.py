#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compiles one case twice: with -DFIXED it must compile, without it must fail with the message of its first line.

The message may stand in an error or in one of its notes. Where compilers word it differently, further `// expect:` lines
follow the first, and one of them has to be found.

usage: check.py CASE.cpp -- COMPILER FLAGS… | check.py --self-test -- COMPILER FLAGS…
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

PREFIX = "// expect: "


def compile_case(compiler, case, *extra):
    # Not -fsyntax-only: GCC leaves some templates uninstantiated then, and their messages unsaid.
    environment = dict(os.environ, LC_ALL="C")
    return subprocess.run([*compiler, *extra, "-O0", "-S", "-o", os.devnull, str(case)], capture_output=True, text=True,
                          env=environment)


def check(case, compiler):
    """None if the case is as it should be, or else what is wrong with it."""
    expected = []
    for line in case.read_text(encoding="utf-8").splitlines():
        if not line.startswith(PREFIX) or not line[len(PREFIX):].strip():
            break
        expected.append(line[len(PREFIX):].strip())
    if not expected:
        return f"its first line is not '{PREFIX}part of the message'"
    fixed = compile_case(compiler, case, "-DFIXED")
    if fixed.returncode != 0:
        return f"does not compile with -DFIXED:\n{fixed.stderr[:6000]}"
    broken = compile_case(compiler, case)
    if broken.returncode == 0:
        return "compiles without -DFIXED, and must not"
    # Messages alone: the compiler also prints source lines, which hold the sentence in the header's own text.
    messages = [line for line in broken.stderr.splitlines() if re.match(r"\S+:\d+:(\d+:)? (fatal )?(error|note): ", line)]
    if not any(text in line for text in expected for line in messages):
        return f"fails without {' or '.join(map(repr, expected))} in a message:\n{broken.stderr[:6000]}"
    return None


def self_test(compiler):
    body = "template <class T> void f() { static_assert(sizeof(T) == 1, \"one byte only\"); }\n"
    use = "#ifdef FIXED\nusing t = char;\n#else\nusing t = int;\n#endif\nint main() { f<t>(); }\n"
    cases = [
        (PREFIX + "one byte only\n" + body + use, None),
        (PREFIX + "two bytes only\n" + body + use, "fails without"),
        (PREFIX + "one byte only\n" + "int main() {}\n", "compiles without"),
        (PREFIX + "one byte only\n" + body + "int main() { f<int>(); }\n", "does not compile with"),
        (body + use, "first line"),
        (PREFIX + "two bytes only\n" + PREFIX + "one byte only\n" + body + use, None),
        (PREFIX + "one byte only\n" + body + "#ifdef FIXED\nint main() {}\n#else\nerror: // one byte only\n#endif\n",
         "fails without"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for number, (text, expected) in enumerate(cases):
            case = pathlib.Path(folder) / f"case{number}.cpp"
            case.write_text(text)
            found = check(case, compiler)
            if (expected is None) != (found is None) or (expected and expected not in found):
                print(f"case {number}: expected {expected!r}, found {found!r}")
                return 1
    print(f"self-test: {len(cases)} cases as expected")
    return 0


def main():
    if "--" not in sys.argv:
        raise SystemExit(__doc__)
    split = sys.argv.index("--")
    compiler = sys.argv[split + 1:]
    if sys.argv[1:split] == ["--self-test"]:
        return self_test(compiler)
    case = pathlib.Path(sys.argv[1])
    wrong = check(case, compiler)
    print(f"{case.name}: {wrong or 'as expected'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
