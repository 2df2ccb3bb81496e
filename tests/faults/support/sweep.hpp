// SPDX-License-Identifier: MIT
//
// tests/faults/support/sweep.hpp: runs a program once for every system call of it, each time with a fault at that call, and looks at what
// is left each time.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "examples/run.hpp"
#include "support/paths.hpp"

namespace faults {

namespace fs = std::filesystem;
using strings = std::vector<std::string>;

/// Exit statuses: 2 for a bad command line, 10 and up for the codes in their order.
enum status : int { USE = 2, FMT = 10, LIM, UNS, PTH, ITG, MIS, NUM, IO, NOSPC, NET, BUSY, DENY, CANC };

/// The names and order of tests/faults/support/fault_shim.cpp.
inline const strings call_classes = {"open", "read", "write", "copy", "reserve", "truncate", "sync", "rename", "close",
                                     "link", "mkdir", "remove", "stat", "lock", "mode", "list", "resolve"};

/// An empty folder in memory where there is one: thousands of runs synchronize their files.
class fast_folder {
 public:
  fast_folder() {
    static std::atomic<unsigned> next{0};
    const fs::path base = ::access("/dev/shm", W_OK) == 0 ? fs::path("/dev/shm") : fs::temp_directory_path();
    path_ = fs::canonical(base) / ("tensorsmith-test-" + std::to_string(::getpid()) + "-f" + std::to_string(next++));
    fs::create_directories(path_);
  }
  fast_folder(const fast_folder&) = delete;
  fast_folder& operator=(const fast_folder&) = delete;
  ~fast_folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const fs::path& path() const { return path_; }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  fs::path path_;
};

/// What lies at a path: enough to see that nobody touched it.
struct entry {
  char kind = '?';  // f, d, l
  unsigned mode = 0;
  std::int64_t modified_ns = 0;  // 0 for folders: making and removing a temporary name changes it
  std::string contents;
  bool operator==(const entry&) const = default;
};
using snapshot = std::map<std::string, entry>;

inline snapshot look(const fs::path& root) {
  snapshot out;
  for (const auto& found : fs::recursive_directory_iterator(root)) {
    struct ::stat raw {};
    if (::lstat(found.path().c_str(), &raw) != 0) continue;  // the temporary name of a process that still runs
    entry e;
    e.mode = raw.st_mode & 07777U;
    e.kind = S_ISDIR(raw.st_mode) ? 'd' : S_ISLNK(raw.st_mode) ? 'l' : 'f';
    if (e.kind == 'f') {
      e.modified_ns = raw.st_mtim.tv_sec * std::int64_t{1'000'000'000} + raw.st_mtim.tv_nsec;
      e.contents = programs::read_text(found.path());
    }
    out[fs::relative(found.path(), root).string()] = std::move(e);
  }
  return out;
}

/// The files alone, without times: what two runs that do the same must agree on.
inline std::map<std::string, std::string> contents_of(const snapshot& all) {
  std::map<std::string, std::string> out;
  for (const auto& [path, e] : all) out[path] = e.kind == 'f' ? e.contents : std::string(1, e.kind);
  return out;
}

/// Puts back what `before` says about `root`.
inline void restore(const fs::path& root, const snapshot& before) {
  fs::remove_all(root);
  fs::create_directories(root);
  for (const auto& [path, e] : before) {
    if (e.kind == 'd') fs::create_directories(root / path);
    if (e.kind == 'f') {
      std::ofstream(root / path, std::ios::binary) << e.contents;
      const ::timespec times[2] = {{e.modified_ns / 1'000'000'000, e.modified_ns % 1'000'000'000}, {e.modified_ns / 1'000'000'000, e.modified_ns % 1'000'000'000}};
      ::utimensat(AT_FDCWD, (root / path).c_str(), times, 0);
    }
  }
  for (auto at = before.rbegin(); at != before.rend(); ++at) ::chmod((root / at->first).c_str(), at->second.mode);
}

/// True for names that a run which died may leave, and the next one removes.
inline bool is_temporary(const std::string& path) {
  for (const fs::path& part : fs::path(path))
    if (part.string().starts_with(".") && part.string().find(".tensorsmith-") != std::string::npos && part.string().ends_with(".tmp")) return true;
  return false;
}

struct outcome {
  int status = -1;  // exit status, or 128 + signal
  bool happened = false;
  std::vector<std::uint64_t> calls;  // by class
  std::string out, err;
  std::uint64_t call_count() const {
    std::uint64_t sum = 0;
    for (const std::uint64_t n : calls) sum += n;
    return sum;
  }
};

struct how {
  std::string root{};                         // files below are watched
  std::string fault{};                        // CLASS:K:ACTION
  std::string opens{};                        // a file that receives all paths that are opened
  strings environment{};                      // NAME=VALUE
  std::function<void()> before_start{};       // in the new process: limits
  std::function<void(pid_t)> meanwhile{};
};

inline std::string shim() {
  if (const char* given = std::getenv("TENSORSMITH_FAULT_SHIM")) return given;
  throw std::runtime_error("TENSORSMITH_FAULT_SHIM is not set: run this through ctest");
}

namespace detail {

class memory_file {
 public:
  explicit memory_file(std::size_t size = 0) : number_(::memfd_create("captured", MFD_CLOEXEC)) {
    if (number_ < 0 || ::ftruncate(number_, static_cast<off_t>(size)) != 0) throw std::runtime_error("memfd_create failed");
  }
  memory_file(const memory_file&) = delete;
  memory_file& operator=(const memory_file&) = delete;
  ~memory_file() { ::close(number_); }
  int number() const { return number_; }
  std::string path() const { return "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(number_); }
  std::string text() const {
    std::string out(static_cast<std::size_t>(::lseek(number_, 0, SEEK_END)), '\0');
    if (::pread(number_, out.data(), out.size(), 0) != static_cast<ssize_t>(out.size())) throw std::runtime_error("cannot read what was captured");
    return out;
  }

 private:
  int number_;
};

}  // namespace detail

/// Runs `bin/<name> arguments…` with the fault and waits for it.
inline outcome run(const std::string& name, const strings& arguments, const how& options = {}) {
  const detail::memory_file out, err, counts(4096);
  strings environment = options.environment;
  for (char** e = environ; *e; ++e)
    if (std::string_view(*e).substr(0, 18) != "TENSORSMITH_FAULT_") environment.emplace_back(*e);
  if (!options.root.empty() || !options.opens.empty()) {
    environment.push_back("LD_PRELOAD=" + shim());
    environment.push_back("TENSORSMITH_FAULT_ROOT=" + options.root);
    environment.push_back("TENSORSMITH_FAULT_COUNT=" + counts.path());
    environment.push_back("ASAN_OPTIONS=verify_asan_link_order=0:detect_leaks=0");
    if (!options.fault.empty()) environment.push_back("TENSORSMITH_FAULT=" + options.fault);
    if (!options.opens.empty()) environment.push_back("TENSORSMITH_FAULT_OPENS=" + options.opens);
  }
  const std::string program = (programs::folder() / name).string();
  std::vector<char*> argv{const_cast<char*>(program.c_str())}, envp;
  for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  for (const std::string& e : environment) envp.push_back(const_cast<char*>(e.c_str()));
  argv.push_back(nullptr), envp.push_back(nullptr);
  // Between fork and exec, a signal would meet the handlers of this test.
  ::sigset_t ends, before;
  ::sigemptyset(&ends);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) ::sigaddset(&ends, number);
  ::pthread_sigmask(SIG_BLOCK, &ends, &before);
  const pid_t child = ::fork();
  if (child != 0) ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) {
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) ::signal(number, SIG_DFL);
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (::dup2(out.number(), 1) < 0 || ::dup2(err.number(), 2) < 0) ::_exit(126);
    if (options.before_start) options.before_start();
    ::execve(program.c_str(), argv.data(), envp.data());
    ::_exit(127);
  }
  if (options.meanwhile) options.meanwhile(child);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0)
    if (errno != EINTR) throw std::runtime_error("waitpid failed");
  outcome result;
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (result.status == 127 || result.status == 125) throw std::runtime_error("cannot start " + program + ": " + err.text());
  result.out = out.text(), result.err = err.text();
  std::vector<std::uint64_t> numbers(512);
  if (::pread(counts.number(), numbers.data(), 4096, 0) != 4096) throw std::runtime_error("cannot read the counts");
  result.calls.assign(numbers.begin(), numbers.begin() + static_cast<std::ptrdiff_t>(call_classes.size()));
  result.happened = numbers[call_classes.size() + 1] != 0;
  return result;
}

/// One run that a sweep repeats: what it is started with, and where its output goes.
struct conversion {
  std::string name;
  strings arguments;   // OUTPUT is `target`
  std::string target;  // below `folder`
};

/// With TENSORSMITH_FULL_SWEEPS set, every fault is made at every call of every conversion (half an hour).
inline bool full_sweeps() { return std::getenv("TENSORSMITH_FULL_SWEEPS") != nullptr; }

/// A conversion with a place to run it in: `folder` holds the target and nothing that is read.
class subject {
 public:
  subject(const fast_folder& work, conversion what) : work_(work), what_(std::move(what)), folder_(work.path() / "out") {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    clean_ = start({});
    if (clean_.status != 0) throw std::runtime_error(what_.name + ": " + clean_.err);
    complete_ = contents_of(look(folder_));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }

  /// Puts an older output at the target: of other bytes, readable for its owner alone, of the year 2001.
  void plant_old_output() {
    old_ = true;
    const fs::path target = folder_ / what_.target;
    const bool folder = !fs::path(what_.target).has_extension();
    const fs::path file = folder ? target / "old.txt" : target;
    programs::write_text(file, "an older output");
    fs::permissions(file, fs::perms::owner_read | fs::perms::owner_write);
    if (folder) fs::permissions(target, fs::perms::owner_all);
    const ::timespec times[2] = {{1'000'000'000, 7}, {1'000'000'000, 7}};
    ::utimensat(AT_FDCWD, file.c_str(), times, 0);
    before_ = look(folder_);
  }

  outcome start(const std::string& fault) const {
    return faults::run("convert-weights", arguments(old_), {.root = work_.path().string(), .fault = fault});
  }
  /// As after a crash: whatever is there is replaced.
  outcome start_again() const { return faults::run("convert-weights", arguments(true)); }
  outcome start_while(const std::function<void(pid_t)>& meanwhile) const {
    return faults::run("convert-weights", arguments(old_), {.meanwhile = meanwhile});
  }
  void reset() const { restore(folder_, before_); }

  const std::string& name() const { return what_.name; }
  /// The call that a sweep looks at after the k-th of its class: the next one; of a program that makes hundreds of calls on the weights,
  /// each of which is like the one before, the first and the last ones and some in between.
  std::uint64_t after(std::uint64_t k, const std::string& calls) const {
    std::uint64_t all = clean_.call_count();
    if (all < 1000 || full_sweeps()) return k + 1;
    for (std::size_t i = 0; i < call_classes.size(); ++i)
      if (call_classes[i] == calls) all = clean_.calls[i];
    const std::uint64_t last = all > 60 ? all - 40 : 0;
    return k < 20 || k >= last ? k + 1 : std::min(k + k / 4, last);
  }
  const fs::path& folder() const { return folder_; }
  const snapshot& before() const { return before_; }
  const std::map<std::string, std::string>& complete() const { return complete_; }
  const outcome& clean() const { return clean_; }

 private:
  strings arguments(bool force) const {
    strings all = what_.arguments;
    if (force) all.push_back("--force");
    return all;
  }

  const fast_folder& work_;
  conversion what_;
  fs::path folder_;
  snapshot before_;
  std::map<std::string, std::string> complete_;
  outcome clean_;
  bool old_ = false;
};

/// What is wrong with how a run ended that met an error; empty if nothing. U2: the target is as it was, no temporary name is left.
inline std::string judge_failure(const subject& s, const outcome& run) {
  if (run.status < FMT || run.status > CANC) return "exit status " + std::to_string(run.status) + ", stderr: " + run.err;
  std::string sentence = run.err;
  while (sentence.starts_with("convert-weights: warning: ")) sentence.erase(0, sentence.find('\n') + 1);
  if (!sentence.starts_with("convert-weights: ") || std::count(sentence.begin(), sentence.end(), '\n') != 1 || !sentence.ends_with('\n'))
    return "no single sentence: " + run.err;
  if (look(s.folder()) == s.before()) return {};
  std::string left;
  for (const auto& [path, e] : look(s.folder())) left += " " + path + "(" + std::to_string(e.contents.size()) + ")";
  return "not as it was:" + left + ", stderr: " + run.err;
}

/// What is wrong with how a run ended that claims success.
inline std::string judge_success(const subject& s, const outcome& run) {
  if (run.status != 0) return "exit status " + std::to_string(run.status) + ", stderr: " + run.err;
  if (contents_of(look(s.folder())) == s.complete()) return {};
  std::string left;
  for (const auto& [path, e] : look(s.folder())) left += " " + path + "(" + std::to_string(e.contents.size()) + ")";
  return "other bytes than without a fault:" + left;
}

}  // namespace faults
