// SPDX-License-Identifier: MIT
//
// common/progress.hpp: a progress bar on a terminal, nothing elsewhere; and how amounts are printed.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <string>

#include "tensorsmith/core/job.hpp"
#include "tensorsmith/io/os.hpp"

namespace examples {

inline std::string format(const char* pattern, double value) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

/// "4.27 GB", "860 kB": powers of 1000, three digits.
inline std::string human_bytes(double bytes) {
  constexpr const char* units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
  std::size_t unit = 0;
  while (bytes >= 999.5 && unit + 1 < std::size(units)) bytes /= 1000, ++unit;
  return format(unit == 0 || bytes >= 99.95 ? "%.0f " : bytes >= 9.995 ? "%.1f " : "%.2f ", bytes) + units[unit];
}

/// "859.5 M", "12.3 k": a count.
inline std::string human_count(double count) {
  constexpr const char* units[] = {"", " k", " M", " G", " T"};
  std::size_t unit = 0;
  while (count >= 999.95 && unit + 1 < std::size(units)) count /= 1000, ++unit;
  return format(unit == 0 ? "%.0f" : "%.1f", count) + units[unit];
}

/// "0.42 s", "1:05", "2:03:00".
inline std::string human_time(double seconds) {
  if (seconds < 59.5) return format(seconds < 9.95 ? "%.2f s" : "%.1f s", seconds);
  const auto whole = static_cast<long long>(seconds + 0.5);
  char text[64];
  if (whole < 3600) std::snprintf(text, sizeof text, "%lld:%02lld", whole / 60, whole % 60);
  else std::snprintf(text, sizeof text, "%lld:%02lld:%02lld", whole / 3600, whole / 60 % 60, whole % 60);
  return text;
}

/// Draws on standard error, ten times a second at most; does nothing if that is no terminal.
class progress_bar {
 public:
  explicit progress_bar(bool wanted) : drawn_on_(wanted && tensorsmith::os::is_terminal(2)) {}
  ~progress_bar() { clear(); }
  progress_bar(const progress_bar&) = delete;
  progress_bar& operator=(const progress_bar&) = delete;

  bool visible() const noexcept { return drawn_on_; }

  void update(const tensorsmith::progress& p) {
    const auto now = std::chrono::steady_clock::now();
    if (!started_) begin_ = now, started_ = true;
    if (!drawn_on_ || now - last_ < std::chrono::milliseconds(100)) return;
    last_ = now;
    draw(p, std::chrono::duration<double>(now - begin_).count());
  }

  /// Removes the bar, so that what follows starts on a clean line.
  void clear() {
    if (drawn_) std::fputs("\r\033[K", stderr), std::fflush(stderr);
    drawn_ = false;
  }

 private:
  void draw(const tensorsmith::progress& p, double seconds) {
    constexpr int width = 28;
    const double done = static_cast<double>(p.done_bytes), total = static_cast<double>(p.total_bytes);
    const double part = total > 0 ? std::min(done / total, 1.0) : 1.0;
    std::string line = "\r[";
    for (int i = 0; i < width; ++i) line += i < static_cast<int>(part * width) ? '#' : '.';
    line += "] " + format("%3.0f%% ", part * 100) + human_bytes(done) + " of " + human_bytes(total);
    if (seconds > 0.3 && done > 0) {
      line += ", " + human_bytes(done / seconds) + "/s";
      line += ", " + human_time(seconds * (total - done) / done) + " left";
    }
    std::fputs((line + "\033[K").c_str(), stderr);
    std::fflush(stderr);
    drawn_ = true;
  }

  bool drawn_on_, started_ = false, drawn_ = false;
  std::chrono::steady_clock::time_point begin_{}, last_{};
};

}  // namespace examples
