#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The rules that headers keep, checked over include/tensorsmith/.

Layers: an include points to the same folder or to one earlier in LAYERS, and a format includes no other format;
exceptions stand in cmake/layers.txt with a reason. Entry headers (directly in tensorsmith/) may include everything but ext/, and no other header includes them.
Also: length of files and functions, forbidden and restricted includes, licence line, include guard, linkage.

usage: check.py SOURCE_DIR | check.py --self-test
"""

import pathlib
import re
import sys
import tempfile

LAYERS = ["core", "quant", "merge", "tensor", "io", "graph", "tokenizer", "format", "eval", "arch", "pass", "target",
          "card", "stage", "hub", "ext"]
ROOT_ANYONE_MAY_INCLUDE = {"fwd.hpp", "version.hpp"}
MAX_HEADER_LINES = 800
MAX_FUNCTION_LINES = 80

FORBIDDEN = {"iostream", "regex", "ranges", "format", "expected", "print"}
# Standard and third-party headers that only some of ours may include: pattern of the include, pattern of the header.
RESTRICTED = [
    (r"(thread|mutex|shared_mutex|condition_variable|future|semaphore|latch|barrier|stop_token)$",
     r"tensor/executor\.hpp$|io/"),
    (r"nlohmann/", r"io/json\.hpp$"),
    (r"(onnx/|google/protobuf)", r"format/onnx/|ext/"),
    (r"zlib\.h$", r"io/zip\.hpp$"),
    (r"pugixml", r"io/xml\.hpp$"),
    (r"(xtensor|xsimd|xtl)/", r"eval/|ext/"),
    (r"curl/", r"hub/"),
    (r"CLI/", r"ext/cli11/"),
    (r"(onnxruntime|openvino|mpi)", r"ext/"),
    (r"(sys/|linux/|unistd\.h|fcntl\.h|dirent\.h|poll\.h|signal\.h|pthread\.h|windows\.h|io\.h|winioctl\.h)",
     r"io/os\.hpp$"),
    (r".*intrin\.h$|cpuid\.h$|arm_neon\.h$|wasm_simd128\.h$", r"(core/(isa|convert|sha256)|(quant|merge)/.*simd.*|(quant|merge)/kernel/.*)\.hpp$"),
]
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]')
STANDARD = re.compile(r"^[a-z_0-9]+$|^(float|math|errno|time|stdlib|stdio|string|limits|inttypes|stdint)\.h$")


def blank_comments_and_strings(text):
    """The text with comments, literals and preprocessor lines replaced by spaces; line breaks stay."""
    token = re.compile(
        r'R"(?P<d>[^()\s\\]{0,16})\(.*?\)(?P=d)"|//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"'
        r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'"
        r"|^[ \t]*#(?:[^\n\\]|\\.|\\\n)*|^[ \t]*TENSORSMITH_(?:BEGIN|END)_NAMESPACE[^\n]*",
        re.S | re.M)
    return token.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


def without_angles(head):
    """The head of a declaration less its template parameter lists, which hold words such as `class`."""
    out, i = "", 0
    for match in re.finditer(r"\btemplate\s*<", head):
        if match.start() < i:
            continue
        out += head[i:match.start()]
        depth, i = 1, match.end()
        while i < len(head) and depth:
            depth += {"<": 1, ">": -1}.get(head[i], 0)
            i += 1
    return out + head[i:]


def functions(text):
    """(first line, lines, head) of every function at namespace or class scope. Braces are counted; that is enough."""
    code = blank_comments_and_strings(text)
    found, start, i = [], None, 0
    while i < len(code):
        c = code[i]
        if start is None:
            if not c.isspace() and c not in ";}":
                start = i
                continue
            i += 1
            continue
        if c == ";":
            start = None
        elif c == "}":
            start = None
        elif c == ":" and re.fullmatch(r"(public|private|protected)\s*", code[start:i]):
            start = None
        elif c == "(":  # skip to the matching parenthesis: default arguments hold braces
            depth = 0
            while i < len(code):
                depth += {"(": 1, ")": -1}.get(code[i], 0)
                if depth == 0:
                    break
                i += 1
        elif c == "{":
            head = without_angles(code[start:i]).strip()
            flat = re.sub(r"\[\[.*?\]\]|alignas\s*\([^)]*\)", " ", head, flags=re.S)
            container = re.match(r"(inline\s+)?namespace\b|extern\b", flat) or (
                re.match(r"(typedef\s+)?(class|struct|union)\b", flat) and "(" not in flat)
            if container:
                start = None
            else:
                end = i
                while True:  # member initialisers `: a_{x} {` and the body that follows them are one declaration
                    depth = 0
                    while end < len(code):
                        depth += {"{": 1, "}": -1}.get(code[end], 0)
                        end += 1
                        if depth == 0:
                            break
                    rest = re.match(r"\s*(,[^;{}]*)?\{", code[end:])
                    if not rest or ":" not in flat:
                        break
                    end += rest.end() - 1
                assigned = re.search(r"(?<![=!<>])=(?!=)", re.sub(r"operator\s*\S+?\s*\(|\([^()]*\)", "()", flat))
                if "(" in flat and (not assigned or re.search(r"\]\s*\(", flat)):
                    first = code.count("\n", 0, start) + 1
                    found.append((first, code.count("\n", 0, end - 1) + 2 - first, " ".join(head.split())[:60]))
                i, start = end, None
                continue
        i += 1
    return found


def read_exceptions(path):
    exceptions = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"(\S+)\s*->\s*(\S+)\s*#\s*(\S.*)", line.strip())
        if not match:
            raise SystemExit(f"{path}:{number}: not 'from.hpp -> to.hpp  # reason'")
        exceptions[(match[1], match[2])] = number
    return exceptions


def check_include(name, target, quoted, exceptions, used, say):
    folder = name.split("/")[0] if "/" in name else None
    if target.startswith("tensorsmith/"):
        to = target[len("tensorsmith/"):]
        to_folder = to.split("/")[0] if "/" in to else None
        if to_folder is None:
            if folder is not None and to not in ROOT_ANYONE_MAY_INCLUDE:
                say(f"includes the entry header {to}; include what is needed of it")
        elif to_folder not in LAYERS:
            say(f"includes {to}, whose folder is no layer")
        elif folder is None:
            if to_folder == "ext":
                say(f"an entry header includes {to}; ext/ is for those who name it")
        elif LAYERS.index(to_folder) > LAYERS.index(folder):
            if (name, to) in exceptions:
                used.add((name, to))
            else:
                say(f"includes {to}, which is further up ({folder} < {to_folder})")
        elif folder == to_folder == "format" and name.split("/")[1] != to.split("/")[1]:
            if (name, to) in exceptions:
                used.add((name, to))
            else:
                say(f"includes {to}, another format")
        return
    if quoted:
        say(f'includes "{target}": ours by full path "tensorsmith/…", others in <>')
    if target in FORBIDDEN:
        say(f"includes <{target}>, which no header may")
    for pattern, allowed in RESTRICTED:
        if re.match(pattern, target):
            if not re.match(allowed, name):
                say(f"includes <{target}>, which only {allowed} may")
            return
    if not STANDARD.match(target):
        say(f"includes <{target}>, a library that tests/layers/check.py does not know")


def check_header(root, path, exceptions, used, errors):
    name = path.relative_to(root).as_posix()
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()

    def say(finding, line=None):
        errors.append(f"{name}{':' + str(line) if line else ''}: {finding}")

    if "/" in name and name.split("/")[0] not in LAYERS:
        say("its folder is no layer")
        return
    if not lines or lines[0] != "// SPDX-License-Identifier: MIT":
        say("does not open with '// SPDX-License-Identifier: MIT'")
    if not any(line == "#pragma once" for line in lines):
        say("has no #pragma once")
    if len(lines) > MAX_HEADER_LINES:
        say(f"has {len(lines)} lines, more than {MAX_HEADER_LINES}; split it by meaning")
    for number, line in enumerate(lines, 1):
        match = INCLUDE.match(line)
        if match:
            target = match[2]
            if target.startswith("tensorsmith/") and not (root.parent / target).is_file():
                say(f"includes {target}, which does not exist", number)
            check_include(name, target, match[1] == '"', exceptions, used, lambda f, n=number: say(f, n))
    code = blank_comments_and_strings(text)
    for number, line in enumerate(code.splitlines(), 1):
        if re.match(r"\s*(inline\s+)?namespace\s*\{", line):
            say("unnamed namespace: every source would get its own copy", number)
        if re.match(r"\s*using\s+namespace\b", line):
            say("using namespace in a header", number)
        if re.match(r"static\b(?!_assert)", line):
            say("static at namespace scope: every source would get its own copy", number)
    for first, count, head in functions(text):
        if count > MAX_FUNCTION_LINES:
            say(f"'{head}' has {count} lines, more than {MAX_FUNCTION_LINES}", first)


def check_tree(source):
    root = source / "include" / "tensorsmith"
    headers = sorted(root.rglob("*.hpp"))
    if not headers:
        return 0, [f"{root}: no header found: nothing was checked"]
    errors, used = [], set()
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.suffix != ".hpp"):
        errors.append(f"{path.relative_to(root).as_posix()}: not a .hpp: every file here is a header that stands alone")
    exceptions = read_exceptions(source / "cmake" / "layers.txt")
    for path in headers:
        check_header(root, path, exceptions, used, errors)
    for key, number in exceptions.items():
        if key not in used:
            errors.append(f"cmake/layers.txt:{number}: {key[0]} does not include {key[1]} any more; remove the line")
    return len(headers), errors


GOOD = "// SPDX-License-Identifier: MIT\n#pragma once\n"
BODY = "\n".join("  x += 1;" for _ in range(90))
SELF_TEST = [  # name, text, part of the finding (None: must be accepted)
    ("core/a.hpp", GOOD + "#include <vector>\n", None),
    ("io/json.hpp", GOOD + '#include <nlohmann/json.hpp>\n#include "tensorsmith/core/a.hpp"\n', None),
    ("core/up.hpp", GOOD + '#include "tensorsmith/io/json.hpp"\n', "further up"),
    ("core/excused.hpp", GOOD + '#include "tensorsmith/io/json.hpp"\n', None),
    ("core/json.hpp", GOOD + "#include <nlohmann/json.hpp>\n", "which only"),
    ("format/torch/read.hpp", GOOD + "#include <onnx/onnx_pb.h>\n", "which only"),
    ("format/torch/tag.hpp", GOOD, None),
    ("format/diffusers/read.hpp", GOOD + '#include "tensorsmith/format/torch/tag.hpp"\n', "another format"),
    ("core/stream.hpp", GOOD + "  #  include <iostream>\n", "which no header may"),
    ("core/os.hpp", GOOD + "#include <unistd.h>\n", "which only"),
    ("core/thread.hpp", GOOD + "#include <mutex>\n", "which only"),
    ("core/unknown.hpp", GOOD + "#include <boost/any.hpp>\n", "does not know"),
    ("core/gone.hpp", GOOD + '#include "tensorsmith/core/nothing.hpp"\n', "does not exist"),
    ("core/relative.hpp", GOOD + '#include "a.hpp"\n', "by full path"),
    ("core/entry.hpp", GOOD + '#include "tensorsmith/tensorsmith.hpp"\n', "entry header"),
    ("tensorsmith.hpp", GOOD + '#include "tensorsmith/stage/s.hpp"\n', None),
    ("stage/s.hpp", GOOD, None),
    ("misc/a.hpp", GOOD, "no layer"),
    ("core/licence.hpp", "#pragma once\n", "SPDX"),
    ("core/guard.hpp", "// SPDX-License-Identifier: MIT\n", "pragma once"),
    ("core/long.hpp", GOOD + "//\n" * 800, "more than 800"),
    ("core/function.hpp", GOOD + "template <class T>\ninline int f(T x = {}) {\n" + BODY + "\n}\n", "more than 80"),
    ("core/method.hpp", GOOD + "TENSORSMITH_BEGIN_NAMESPACE\nnamespace n {\nclass c {\n public:\n  c() : a_{1}, b_(2) {\n"
     + BODY + "\n }\n};\n}\nTENSORSMITH_END_NAMESPACE\n", "more than 80"),
    ("core/lambda.hpp", GOOD + "inline constexpr auto f = [](int x) {\n" + BODY + "\n};\n", "more than 80"),
    ("core/brace.hpp", GOOD + "inline char f(char c) {\n if (c == '{') return '\"';\n}\ninline int g() {\n" + BODY + "\n}\n",
     "more than 80"),
    ("core/table.hpp", GOOD + "inline constexpr int t[] = {\n" + "  1,\n" * 90 + "};\nstruct s {\n" + "  int f();\n" * 90
     + "};\ntemplate <class T> class u {\n" + "  int g() { return 0; }\n" * 90 + "};\n", None),
    ("core/part.ipp", "", "stands alone"),
    ("core/unnamed.hpp", GOOD + "namespace {\n}\n", "unnamed namespace"),
    ("core/static.hpp", GOOD + "static int f();\n", "static at namespace scope"),
    ("core/using.hpp", GOOD + "using namespace std;\n", "using namespace"),
]


def self_test():
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder)
        (source / "cmake").mkdir()
        (source / "cmake" / "layers.txt").write_text("core/excused.hpp -> io/json.hpp  # a test\n"
                                                     "core/a.hpp -> io/json.hpp  # stale\n")
        if not check_tree(source)[1]:
            failures.append("an empty tree was accepted")
        for name, text, _ in SELF_TEST:
            path = source / "include" / "tensorsmith" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        errors = check_tree(source)[1]
        for name, _, expected in SELF_TEST:
            own = [e for e in errors if e.startswith(name + ":")]
            if expected is None and own:
                failures.append(f"{name} should be accepted, but: {own}")
            if expected is not None and not any(expected in e for e in own):
                failures.append(f"{name}: no finding with '{expected}', only {own}")
        if not any("layers.txt:2" in e for e in errors):
            failures.append("a stale exception was accepted")
    print("\n".join(failures) or f"self-test: {len(SELF_TEST)} cases as expected")
    return 1 if failures else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    count, errors = check_tree(pathlib.Path(sys.argv[1]))
    print("\n".join(errors) or f"{count} headers keep the rules")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
