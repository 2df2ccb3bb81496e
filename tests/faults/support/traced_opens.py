# SPDX-License-Identifier: MIT
# covers IO-20: what the system is asked for, seen from outside
"""strace of convert-weights: every path that is opened lies below the source or the output, or belongs to the system's libraries, its locale
data or what the kernel says about this process; no program is started and no socket is opened (rule U5)."""
import os
import re
import shutil
import sys

from privileged import Work, model, programs, run, skip

SYSTEM = re.compile(r"^(/etc/ld\.so\.(cache|preload)|/(usr/)?lib(64|32|x32)?/.*|/usr/share/(locale|zoneinfo|i18n)/.*|/etc/localtime|"
                    r"/proc/self/.*|/proc/(meminfo|cpuinfo|stat|sys/vm/overcommit_memory)|/sys/devices/system/.*|/sys/fs/cgroup.*|/dev/null)$")
CALL = re.compile(r'^(?:\d+ +)?(\w+)\((.*)$')


def main():
    given = programs()
    if shutil.which("strace") is None:
        skip("there is no strace")
    with Work() as work:
        os.makedirs(work / "in")
        source = work / "in/model.safetensors"
        model(source)
        trace = work / "trace"
        if run(["strace", "-o", trace, "true"]).returncode != 0:
            skip("tracing is not permitted here")
        cases = {
            "model.safetensors": [source, "--dtype", "f16", "--verify-output"],
            "model.pt": [source],
            "shards": [source, "--to", "safetensors", "--shard-size", "20kB"],
            "joined.safetensors": [work / "out/shards/model.safetensors.index.json"],
            "from_torch.safetensors": [work / "out/model.pt"],
        }
        wrong = opened = 0
        for name, (path, *options) in cases.items():
            command = [given.convert, path, work / ("out/" + name), "--quiet", *options]
            done = run(["strace", "-f", "-qq", "-y", "-e", "trace=open,openat,openat2,creat,execve,execveat,socket,connect", "-o", trace, *command])
            if done.returncode != 0:
                print(f"{name}: {done.stderr}")
                return 1
            starts = 0
            for line in open(trace, encoding="utf-8", errors="replace"):
                call = CALL.match(line)
                if not call:
                    continue
                what, arguments = call.groups()
                if what.startswith("exec"):
                    starts += 1
                    continue
                if what in ("socket", "connect"):
                    wrong += 1
                    print(f"{name}: {line.strip()}")
                    continue
                opened += 1
                quoted = re.search(r'"((?:[^"\\]|\\.)*)"', arguments)
                at = quoted.group(1) if quoted else ""
                folder = re.match(r"(?:AT_FDCWD|\d+)<([^>]*)>", arguments)
                if not at.startswith("/") and folder:
                    at = os.path.normpath(os.path.join(folder.group(1), at))
                if not (at == work.path or at.startswith(work / "in") or at.startswith(work / "out") or SYSTEM.match(at)):
                    wrong += 1
                    print(f"{name}: opens {at}")
            if starts != 1:
                wrong += 1
                print(f"{name}: {starts} programs started")
        print(f"{opened} opens, {wrong} wrong")
        return 1 if wrong or opened == 0 else 0


sys.exit(main())
