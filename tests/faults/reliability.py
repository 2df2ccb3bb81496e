#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes docs/reliability.md from tests/faults/catalogue.txt and the tests that name its rows.

usage: reliability.py --check | --write | --self-test [--root DIR]

--check fails if the file is not what --write would make, if a row that a release needs has neither a test nor a reason, or if a
test names a row that the table does not have.
"""

import argparse
import pathlib
import re
import sys

ROW = r"[A-Z]{2,4}-[0-9]{2}"
ROWS = rf"{ROW}(?:, {ROW})*"
TEST_CASE = re.compile(r'^\s*(?:TEST_CASE|TEMPLATE_TEST_CASE|SCENARIO)\s*\(\s*((?:"(?:[^"\\]|\\.)*"\s*)+)', re.MULTILINE)
COVERS = re.compile(rf"\bcovers ({ROWS}): *(.+)")
RULE = re.compile(r"\bU[1-7]\b")


class Problem(Exception):
    pass


def read_catalogue(text):
    """([(section, [row])], [[difference columns]], [[rule columns]]); a row is a dict."""
    sections, lists, current, target = [], {"differences": [], "rules": []}, None, None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("== "):
            sections.append((line[3:].strip(), []))
        elif re.fullmatch(r"\[(differences|rules)\]", line):
            target = lists[line[1:-1]]
        elif target is not None:
            columns = [part.strip() for part in line.split("|")]
            if len(columns) != 3 or not all(columns):
                raise Problem(f"catalogue.txt:{number}: three columns separated by | are needed")
            target.append(columns)
        elif match := re.fullmatch(r"  (untested|changed): (.+)", line):
            if current is None or match[1] in current:
                raise Problem(f"catalogue.txt:{number}: this belongs to no row")
            current[match[1]] = match[2]
        elif match := re.fullmatch(rf"({ROW}) ([* ]) (.+)", line):
            if not sections:
                raise Problem(f"catalogue.txt:{number}: a row before the first heading")
            current = {"id": match[1], "required": match[2] == "*", "what": match[3]}
            if any(row["id"] == current["id"] for _, rows in sections for row in rows):
                raise Problem(f"catalogue.txt:{number}: {match[1]} stands there twice")
            sections[-1][1].append(current)
        else:
            raise Problem(f"catalogue.txt:{number}: not understood: {line}")
    return sections, lists["differences"], lists["rules"]


def split_name(name):
    """The rows that a test's name holds, and the rest of it."""
    if match := re.match(rf"({ROWS})(?::\s*|\s+)(.*)$", name, re.DOTALL):
        return match[1].split(", "), match[2]
    if match := re.search(rf"\s*\(((?:{ROW}|U[1-7])(?:, (?:{ROW}|U[1-7]))*)\)$", name):
        rows = [row for row in match[1].split(", ") if re.fullmatch(ROW, row)]
        if rows:
            return rows, name[:match.start()]
    return [], name


def find_tests(root):
    """[(row, file below tests/, name)]"""
    found = []
    tests = root / "tests"
    for path in sorted(tests.rglob("*")):
        relative = path.relative_to(tests).as_posix()
        if not path.is_file() or relative.startswith("data/") or "__pycache__" in relative:
            continue
        if path.name.endswith("_test.cpp"):
            for match in TEST_CASE.finditer(path.read_text(encoding="utf-8")):
                # The first argument is one or more adjacent string literals; tags follow behind a comma and are not matched.
                name = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', match[1]))
                rows, rest = split_name(name)
                found += [(row, relative, rest) for row in rows]
        elif path.suffix in (".py", ".sh", ".cmake", ".hpp", ".cpp") or path.name == "CMakeLists.txt":
            if relative == "faults/reliability.py":
                continue
            for match in COVERS.finditer(path.read_text(encoding="utf-8")):
                found += [(row, relative, match[2].strip().rstrip("*/").strip()) for row in match[1].split(", ")]
    return found


def read_limits(root):
    """[(member, default, comment, option, help)] from the header that declares the limits and the programs' options for them."""
    header = (root / "include/tensorsmith/core/job.hpp").read_text(encoding="utf-8")
    body = re.search(r"struct limits \{(.*?)\n\};", header, re.DOTALL)
    if not body:
        raise Problem("job.hpp: struct limits was not found")
    options = {}
    for path in sorted((root / "examples").rglob("*.hpp")):
        for match in re.finditer(r'\{"(--max-[a-z-]+)", "([^"]+)", &\w+(?:\.limits)?\.(\w+)\}', path.read_text(encoding="utf-8")):
            options[match[3]] = (match[1], match[2])
    rows = []
    for match in re.finditer(r"std::uint64_t (\w+) = ([^;]+);", body[1]):
        option, what = options.get(match[1], ("", match[1].replace("_", " ")))
        rows.append((match[1], show_number(match[2]), option, what))
    if not rows:
        raise Problem("job.hpp: no limits were found")
    return rows


def show_number(expression):
    text = expression.replace("'", "").replace("std::uint64_t{1}", "1").replace("u", "").strip()
    if match := re.fullmatch(r"(\d+) << (\d+)", text):
        value, shift = int(match[1]), int(match[2])
        if shift == 20:
            return f"{value} MiB"
        return f"2^{shift}" if value == 1 else str(value << shift)
    value = 1
    for factor in text.split("*"):
        value *= int(factor)
    return f"{value:,}" if value >= 10_000 else str(value)


def cell(text):
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def make_page(root):
    """The text of docs/reliability.md and what is wrong."""
    sections, differences, rules = read_catalogue((root / "tests/faults/catalogue.txt").read_text(encoding="utf-8"))
    tests = find_tests(root)
    known = {row["id"]: row for _, rows in sections for row in rows}
    wrong = [f"{file}: a test names {row}, which is no row of the table" for row, file, _ in tests if row not in known]
    by_row = {}
    for row, file, name in tests:
        by_row.setdefault(row, []).append((file, name))
    for row in known.values():
        tested = row["id"] in by_row
        if row["required"] and not tested and "untested" not in row:
            wrong.append(f"{row['id']} ({row['what']}) has no test and no reason for that")
        if tested and "untested" in row:
            wrong.append(f"{row['id']} has a test and a reason for having none")
    out = [INTRODUCTION]
    required = [row for row in known.values() if row["required"]]
    out.append("| | rows | with a test | without, for a reason | open |\n|---|---|---|---|---|")
    for title, rows in (("a release needs them", required), ("others", [row for row in known.values() if not row["required"]])):
        tested = sum(row["id"] in by_row for row in rows)
        excused = sum("untested" in row for row in rows)
        out.append(f"| {title} | {len(rows)} | {tested} | {excused} | {len(rows) - tested - excused} |")
    out.append("\n## The table\n\n**Bold** rows are those a release needs. Tests are named by their file below `tests/`.\n")
    for title, rows in sections:
        out.append(f"### {title}\n\n| row | what | tests |\n|---|---|---|")
        for row in rows:
            name = f"**{row['id']}**" if row["required"] else row["id"]
            lines = [f"`{file}`: {cell(case)}" for file, case in by_row.get(row["id"], [])]
            if "untested" in row:
                lines.append("none: " + cell(row["untested"]))
            if "changed" in row:
                lines.append("judged differently: " + cell(row["changed"]))
            out.append(f"| {name} | {cell(row['what'])} | {'<br>'.join(lines) or 'none yet'} |")
        out.append("")
    out.append("## Rules that hold for every row\n\n| rule | what | how it is checked |\n|---|---|---|")
    out += [f"| {name} | {cell(what)} | {cell(how)} |" for name, what, how in rules]
    out.append(LIMITS)
    out += [f"| {cell(what)} | {default} | {'`' + option + '`' if option else ''} | `limits::{member}` |"
            for member, default, option, what in read_limits(root)]
    out.append(DIFFERENCES)
    for what, how, rows in differences:
        for row in rows.split(", "):
            if row not in known:
                wrong.append(f"catalogue.txt: the differences name {row}, which is no row of the table")
        out.append(f"| {cell(what)} | {cell(how)} | {rows} |")
    changed = [row for row in known.values() if "changed" in row]
    untested = [row for row in known.values() if "untested" in row]
    out.append("\n## Rows that were judged differently\n\nWhat the test asserts is not what the table first asked for.\n\n| row | what | reason |\n|---|---|---|")
    out += [f"| {row['id']} | {cell(row['what'])} | {cell(row['changed'])} |" for row in changed]
    out.append("\n## Rows without a test, on purpose\n\n| row | what | reason |\n|---|---|---|")
    out += [f"| {row['id']} | {cell(row['what'])} | {cell(row['untested'])} |" for row in untested]
    return "\n".join(out) + "\n", wrong


INTRODUCTION = """<!-- Written by tests/faults/reliability.py from tests/faults/catalogue.txt and the names of the tests. Do not edit. -->
# Reliability: what is tested against what

Files of weights come from strangers. Each row below is one way in which such a file, the disk or the system can be wrong, or one
kind of odd file that must work all the same; beside it stand the tests that make exactly that happen. Test files are generated by
code, byte by byte, so that nothing hostile is stored. A test asserts the error's code, its message, and that nothing is left behind.

Error codes: `FMT` the bytes break their format, `LIM` a limit is exceeded, `UNS` well-formed and not supported, `PTH` a path is
refused, `ITG` a checksum is wrong or a file changed, `MIS` parts do not fit together, `NUM` numeric policy, `IO` a system call
failed, `NOSPC` no space, `BUSY` locked, `CANC` cancelled, `USE` a wrong option, `INT` a bug of ours. Each has its own exit status.

Valid files are covered from the other side as well: `tests/differential` has the reference libraries (safetensors, torch, numpy)
write ten thousand random files a format, which we must read alike, and reads with them as many that we wrote.
"""

LIMITS = """
## Limits

What a file may declare. All are members of `tensorsmith::limits`; the programs have an option for each. A message about a limit
names both.

| what | default | option | member |
|---|---|---|---|"""

DIFFERENCES = """
## Where we differ from the reference readers on purpose

The reference readers are the safetensors library and torch. Where two readers disagree on a file, the file is a way to show one
thing to a scanner and another to a loader; hence the strict side, unless real files need the other.
`tests/differential/differences.py` shows that both sides still do what is said here.

| what | here | rows |
|---|---|---|"""


def self_test():
    text = "== A\nAB-01 * one\n  changed: because\nAB-02   two\n[differences]\na | b | AB-01\n[rules]\nU1 | c | d\n"
    sections, differences, rules = read_catalogue(text)
    assert [row["id"] for row in sections[0][1]] == ["AB-01", "AB-02"] and sections[0][1][0]["changed"] == "because"
    assert differences == [["a", "b", "AB-01"]] and rules == [["U1", "c", "d"]]
    for bad in ("AB-01 * one\n", "== A\nAB-01 * one\nAB-01 * one\n", "== A\n  untested: x\n", "== A\nnonsense\n", "[rules]\na | b\n"):
        try:
            read_catalogue(bad)
        except Problem:
            continue
        raise AssertionError(f"accepted: {bad!r}")
    assert split_name("ST-07, ST-08: bytes") == (["ST-07", "ST-08"], "bytes")
    assert split_name("PKL-01 globals") == (["PKL-01"], "globals")
    assert split_name("a folder (U2, IO-05)") == (["IO-05"], "a folder")
    assert split_name("a folder (U2)") == ([], "a folder (U2)")
    assert split_name("a plain name") == ([], "a plain name")
    assert TEST_CASE.search('TEST_CASE("a \\"b\\" "\n  "c", "[tag]") {')[1].strip() == '"a \\"b\\" "\n  "c"'
    assert show_number("std::uint64_t{1} << 48") == "2^48" and show_number("16u << 20") == "16 MiB" and show_number("64 * 1024") == "65,536"
    print("self-test: as expected")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    for name in ("--check", "--write", "--self-test"):
        mode.add_argument(name, action="store_true")
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[2])
    options = parser.parse_args()
    if options.self_test:
        return self_test()
    page = options.root / "docs/reliability.md"
    try:
        text, wrong = make_page(options.root)
    except Problem as problem:
        print(problem)
        return 1
    if options.write:
        page.write_text(text, encoding="utf-8")
        print(f"written: {page}")
    elif not page.exists() or page.read_text(encoding="utf-8") != text:
        wrong.append("docs/reliability.md is stale: run tests/faults/reliability.py --write (or build the target reliability)")
    for line in wrong:
        print(line)
    print(f"{len(wrong)} problems")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
