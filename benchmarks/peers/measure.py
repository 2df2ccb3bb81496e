# SPDX-License-Identifier: MIT
"""Runs a program and measures it: wall time with a sync after it, user and system time, peak anonymous memory."""
import os
import subprocess
import threading
import time


def watch(pid, done, peak):
    """Largest RssAnon, sampled every 10 ms: what a program holds itself, without the page cache of its files."""
    path = f"/proc/{pid}/status"
    while not done.is_set():
        try:
            with open(path, encoding="ascii") as file:
                for line in file:
                    if line.startswith("RssAnon:"):
                        peak[0] = max(peak[0], int(line.split()[1]) * 1024)
                        break
        except OSError:
            return
        done.wait(0.01)


def timed(command):
    """Wall time of the command and a sync after it; user and system time and peak RssAnon of the command."""
    os.sync()
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    done, peak = threading.Event(), [0]
    sampler = threading.Thread(target=watch, args=(process.pid, done, peak))
    sampler.start()
    message = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    ran = time.monotonic() - start
    os.sync()
    wall = time.monotonic() - start
    done.set()
    sampler.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {process.returncode}: {message.strip()[-500:]}")
    return dict(wall=wall, ran=ran, user=usage.ru_utime, system=usage.ru_stime, anonymous=peak[0])


def size_of(folder):
    return sum(os.path.getsize(os.path.join(root, name)) for root, _, files in os.walk(folder) for name in files)
