# SPDX-License-Identifier: MIT
"""Runs a program and measures it: wall time with a sync after it, user and system time, peak anonymous memory."""
import os
import statistics
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


def table(runs, baseline, width):
    """Prints the medians of every mode and its pairwise wall ratios to `baseline`; returns them by mode: runs, middle, ratio, peak_anonymous."""
    print(f"{'':{width}}{'wall s':>9}{'before sync':>13}{'user+sys s':>12}{f'ratio to {baseline}':>13}{'(least, most)':>16}{'peak RssAnon MB':>17}")
    report = {}
    for mode, results in runs.items():
        middle = {k: statistics.median(r[k] for r in results) for k in results[0]}
        ratios = [r["wall"] / c["wall"] for r, c in zip(results, runs[baseline])]
        ratio, peak = statistics.median(ratios), max(r["anonymous"] for r in results)
        print(f"{mode:{width}}{middle['wall']:9.2f}{middle['ran']:13.2f}{middle['user'] + middle['system']:12.2f}{ratio:13.2f}"
              f"{f'({min(ratios):.2f}, {max(ratios):.2f})':>16}{peak / 1e6:17.1f}")
        report[mode] = dict(runs=results, middle=middle, ratio=ratio, peak_anonymous=peak)
    return report
