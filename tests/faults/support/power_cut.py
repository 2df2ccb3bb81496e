# SPDX-License-Identifier: MIT
# covers IO-16: copies of a mounted disk
"""A power cut after every system call: convert-weights writes onto an ext4 file system in an image and is stopped before each call on a
file; the image is copied as it is then, with what the kernel had not written yet missing, and the copy is mounted, which replays its
journal. The old output or the complete new one is there. After the program has reported success, the new one is."""
import os
import shutil
import signal
import stat
import subprocess
import sys

from privileged import Work, contents, is_temporary, model, programs, run, skip

SIZE = 12 << 20


def look(folder):
    """Relative path -> (bytes, mode) of what is there besides temporary names and the file system's own folder."""
    out = {}
    for path, data in contents(folder).items():
        if not is_temporary(path) and path != "lost+found" and data is not None:
            out[path] = (data, stat.S_IMODE(os.stat(os.path.join(folder, path)).st_mode))
    return out


def main():
    given = programs()
    if not given.shim:
        skip("--shim is not given")
    with Work() as work:
        source = work / "model.safetensors"
        model(source)
        image, copy, place, second = work / "image", work / "copy", work / "place", work / "second"
        mkfs = shutil.which("mkfs.ext4") or shutil.which("mkfs.ext4", path="/usr/sbin:/sbin")
        if mkfs is None:
            skip("there is no mkfs.ext4")
        conversions = {"model.safetensors": ["--dtype", "f16"], "model.pt": [], "shards": ["--to", "safetensors", "--shard-size", "20kB"]}
        calls = images = wrong = new = 0
        for name, options in conversions.items():
            for old in (False, True):
                with open(image, "wb") as file:
                    file.truncate(SIZE)
                run([mkfs, "-q", "-F", image], check=True)
                if not work.mount(image, place, "-o", "loop"):
                    skip("mounting an image is not permitted here")
                target = os.path.join(place, name)
                if old:
                    os.makedirs(target if "." not in name else place, exist_ok=True)
                    aside = os.path.join(target, "old") if "." not in name else target
                    with open(aside, "w", encoding="ascii") as file:
                        file.write("an older output")
                    os.chmod(aside, 0o600)
                os.sync()
                before = look(place)
                command = [given.convert, source, target, "--quiet", "--threads", "1", *options, *(["--force"] if old else [])]
                environment = dict(os.environ, LD_PRELOAD=given.shim, TENSORSMITH_FAULT_ROOT=place, TENSORSMITH_FAULT="any:1+:stop")
                child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
                states, done = [], None
                while True:
                    _, status = os.waitpid(child.pid, os.WUNTRACED)
                    with open(image, "rb") as file:
                        states.append(file.read())
                    if not os.WIFSTOPPED(status):
                        done = os.waitstatus_to_exitcode(status)
                        break
                    os.kill(child.pid, signal.SIGCONT)
                error = child.stderr.read().decode()
                complete = look(place)
                work.umount(place)
                if done != 0 or len(states) < 20:
                    print(f"{name}: status {done}, {len(states)} states, {error}")
                    return 1
                calls += len(states)
                for k, state in enumerate(states):
                    if 0 < k < len(states) - 1 and state == states[k - 1]:
                        continue  # the call changed nothing that is on the disk
                    with open(copy, "wb") as file:
                        file.write(state)
                    if not work.mount(copy, second, "-o", "loop"):
                        print(f"{name}: the copy after call {k} cannot be mounted")
                        return 1
                    there = look(second)
                    fine = there == complete if k + 1 == len(states) else there in (before, complete)
                    new += there == complete
                    again = run([given.convert, source, os.path.join(second, name), "--quiet", "--force", *options])
                    left = [path for path in contents(second) if is_temporary(path)]
                    after = {path: data for path, (data, _) in look(second).items()}
                    if not fine or again.returncode != 0 or left or after != {path: data for path, (data, _) in complete.items()}:
                        wrong += 1
                        print(f"{name}, call {k} of {len(states)}: {sorted(there)}, next run: {again.returncode} {again.stderr} {left}")
                    images += 1
                    work.umount(second)
        print(f"{calls} calls, {images} different images, {new} with the new output, {wrong} wrong")
        return 1 if wrong else 0


sys.exit(main())
