// SPDX-License-Identifier: MIT
//
// common/process.hpp: what the process itself needs: signals, standard streams, its own memory use.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

#include "tensorsmith/io/os.hpp"

namespace examples {

namespace ts = tensorsmith;

inline std::atomic<bool> stop_requested{false};
inline std::atomic<int> stop_signal{0};  // which signal asked for it
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free,
              "a signal handler may only touch lock-free atomics");

extern "C" inline void examples_stop(int number) {
  stop_signal.store(number, std::memory_order_relaxed);
  stop_requested.store(true, std::memory_order_relaxed);
}

/// SIGINT, SIGTERM and SIGHUP ask for a clean end (a second one kills); a full file-size limit or a closed pipe becomes
/// an error code of the call that met it.
inline void install_signal_handlers() {
  struct sigaction action {};
  action.sa_handler = examples_stop;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before {};
    if (::sigaction(number, nullptr, &before) == 0 && before.sa_handler == SIG_IGN) continue;  // nohup
    ::sigaction(number, &action, nullptr);
  }
  for (const int number : {SIGPIPE, SIGXFSZ}) ::signal(number, SIG_IGN);
}

/// Fills descriptors 0 to 2 if the caller closed them: the first output file must never be standard output.
inline void open_standard_streams() {
  for (int descriptor = 0; descriptor <= 2; ++descriptor)
    if (::fcntl(descriptor, F_GETFD) == -1) (void)!::open("/dev/null", descriptor == 0 ? O_RDONLY : O_WRONLY);
}

/// Bytes of memory that was resident at its highest: all of it, and the anonymous part (heap, not file pages).
struct memory_peak {
  std::uint64_t resident = 0;
  std::uint64_t anonymous = 0;
};

/// The highest memory use seen by its samples; `sample` looks at most every 5 ms.
class memory_watch {
 public:
  void sample() {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < std::chrono::milliseconds(5)) return;
    last_ = now;
    look();
  }
  /// One last look, and the peaks.
  memory_peak finish() {
    look();
    return peak_;
  }

 private:
  void look() {
    const ts::os::memory_use now = ts::os::memory_in_use();
    peak_.resident = std::max(peak_.resident, now.peak_resident);
    peak_.anonymous = std::max(peak_.anonymous, now.anonymous);
  }
  std::chrono::steady_clock::time_point last_{};
  memory_peak peak_;
};

}  // namespace examples
