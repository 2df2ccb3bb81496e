// SPDX-License-Identifier: MIT
//
// What the benchmarks share: the clock, the end on a wrong result, and alternation of the work with its baseline.
#pragma once

#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>

namespace measure {

inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Ends the program: a benchmark of a wrong result says nothing.
[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "benchmark: %s\n", what);
  std::exit(1);
}

/// Runs `ours` and `bare` in turn; reports the time of `ours`, and as `counter` its speed as a ratio to the baseline's.
template <class Ours, class Bare>
void alternate(benchmark::State& state, Ours&& ours, Bare&& bare, const char* counter = "of_bare") {
  double work = 0, baseline = 0;
  for (auto _ : state) {
    const double start = seconds();
    ours();
    const double middle = seconds();
    bare();
    work += middle - start;
    baseline += seconds() - middle;
    state.SetIterationTime(middle - start);
  }
  state.counters[counter] = baseline / work;
}

}  // namespace measure
