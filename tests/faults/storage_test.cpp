// SPDX-License-Identifier: MIT
//
// convert-weights while the disk misbehaves: every system call on a file fails once, is short or is interrupted; the disk is full; the
// place is forbidden; the source changes. Either the output is right, or there is one sentence and everything is as it was.
#include <grp.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "faults/support/conversions.hpp"
#include "faults/support/sweep.hpp"
#include "support/catch.hpp"

namespace {

using namespace faults;

/// What a fault in a class of calls may lead to.
enum class expectation { must_fail, must_succeed, either };

struct injection {
  const char* calls;
  const char* action;
  expectation then;
  int status;             // of a failure; 0: any code
  bool everywhere = true;  // false: takes the same way through the program as another one, so it is made in the first conversion alone
};

/// Interruptions and short transfers change nothing; a read or write that fails always shows; the rest may be survived (a clone that is not
/// possible, a lock that is not granted, a leftover that cannot be listed) but then the output is complete.
const std::vector<injection> injections = {
    {"read", "EIO", expectation::must_fail, IO},
    {"read", "EINTR", expectation::must_succeed, 0},
    {"read", "short=1", expectation::must_succeed, 0},
    {"read", "short=100", expectation::must_succeed, 0, false},
    {"write", "EIO", expectation::must_fail, IO, false},
    {"write", "ENOSPC", expectation::must_fail, NOSPC},
    {"write", "EDQUOT", expectation::must_fail, NOSPC, false},
    {"write", "EINTR", expectation::must_succeed, 0},
    {"write", "short=1", expectation::must_succeed, 0},
    {"write", "short=100", expectation::must_succeed, 0, false},
    {"copy", "EIO", expectation::either, 0},
    {"copy", "ENOSPC", expectation::either, NOSPC},
    {"copy", "EINTR", expectation::must_succeed, 0},
    {"copy", "short=100", expectation::must_succeed, 0},
    {"copy", "EXDEV", expectation::must_succeed, 0},
    {"reserve", "ENOSPC", expectation::must_fail, NOSPC},
    {"reserve", "EDQUOT", expectation::must_fail, NOSPC, false},
    {"reserve", "EIO", expectation::must_fail, IO},
    {"reserve", "EINTR", expectation::must_succeed, 0},
    {"reserve", "EOPNOTSUPP", expectation::must_succeed, 0},
    {"sync", "EIO", expectation::must_fail, IO},
    {"sync", "ENOSPC", expectation::must_fail, NOSPC, false},
    {"sync", "EDQUOT", expectation::must_fail, NOSPC},
    {"sync", "EINTR", expectation::must_succeed, 0},
    {"rename", "EIO", expectation::must_fail, IO},
    {"rename", "EXDEV", expectation::must_fail, IO},
    {"rename", "EACCES", expectation::must_fail, IO},
    {"rename", "ENOSYS", expectation::must_succeed, 0},
    {"open", "EIO", expectation::either, 0},
    {"open", "EACCES", expectation::either, 0, false},
    {"open", "EMFILE", expectation::either, 0},
    {"open", "EINTR", expectation::either, 0},
    {"close", "EIO", expectation::either, IO, false},
    {"close", "EDQUOT", expectation::either, NOSPC},
    {"link", "EPERM", expectation::either, 0},
    {"mkdir", "ENOSPC", expectation::must_fail, NOSPC},
    {"mkdir", "EACCES", expectation::must_fail, IO},
    {"remove", "EIO", expectation::either, 0},
    {"stat", "EIO", expectation::either, 0},
    {"stat", "EACCES", expectation::either, 0, false},
    {"lock", "ENOLCK", expectation::must_succeed, 0},
    {"mode", "EPERM", expectation::either, 0},
    {"list", "EIO", expectation::either, 0},
    {"resolve", "EIO", expectation::either, 0},
};

std::string judge(const subject& s, const injection& fault, const outcome& run) {
  if (fault.then == expectation::must_succeed) return judge_success(s, run);
  if (fault.then == expectation::either && run.status == 0) return judge_success(s, run);
  if (run.status == 0) return "success in spite of the fault";
  if (fault.status != 0 && run.status != fault.status) return "exit status " + std::to_string(run.status) + ", stderr: " + run.err;
  return judge_failure(s, run);
}

struct sweep_count {
  unsigned runs = 0, failures = 0;
};

/// The fault at the first, second, … call of its class, until a run has fewer calls than that.
sweep_count sweep(const subject& s, const injection& fault) {
  sweep_count count;
  for (std::uint64_t k = 1;; k = s.after(k, fault.calls)) {
    s.reset();
    const std::string what = std::string(fault.calls) + ":" + std::to_string(k) + ":" + fault.action;
    const outcome run = s.start(what);
    const std::string wrong = run.happened ? judge(s, fault, run) : judge_success(s, run);
    if (!wrong.empty()) {
      INFO(s.name() << ", " << (s.before().empty() ? "no output there" : "an older output there") << ", " << what);
      CHECK(wrong == "");
    }
    ++count.runs;
    count.failures += run.status != 0;
    if (!run.happened || k > 100'000) return count;
  }
}

void sweep_all(const std::string& name) {
  const sources work;
  subject s(work, work.named(name));
  CHECK(s.clean().call_count() > 10);
  std::set<std::string> met;
  unsigned runs = 0;
  for (const bool old : {false, true}) {
    if (name == "pipeline" && !old && !full_sweeps()) continue;
    if (old) s.plant_old_output();
    for (const injection& fault : injections) {
      if (!fault.everywhere && name != "cast" && !full_sweeps()) continue;
      if (name == "pipeline" && fault.then != expectation::must_fail && !full_sweeps()) continue;
      const sweep_count count = sweep(s, fault);
      runs += count.runs;
      if (count.runs > 1) met.insert(fault.calls);
      CAPTURE(fault.calls, fault.action);
      if (std::string(fault.calls) == "close") CHECK(count.failures > 0);  // closing the output may bring its first news of a full quota
    }
  }
  CAPTURE(runs);
  CHECK(runs > 50);
  for (const char* always : {"open", "read", "write", "reserve", "sync", "rename", "close", "mkdir", "remove", "stat", "lock"}) {
    if (name == "pipeline" && !full_sweeps()) continue;
    CAPTURE(always);
    CHECK(met.count(always) == 1);  // or the shim no longer sees the calls of this program
  }
}

}  // namespace

TEST_CASE("IO-01, IO-02, IO-03, IO-04, IO-08, IO-21: each call on a file fails, is short or is interrupted: safetensors to safetensors") { sweep_all("cast"); }
TEST_CASE("IO-01, IO-02, IO-03, IO-04, IO-08, IO-21: each call on a file fails, is short or is interrupted: shards") { sweep_all("shards"); }
TEST_CASE("IO-01, IO-02, IO-03, IO-04, IO-08, IO-21: each call on a file fails, is short or is interrupted: torch to safetensors") { sweep_all("from torch"); }
TEST_CASE("IO-01, IO-02, IO-03, IO-04, IO-08, IO-21: each call on a file fails, is short or is interrupted: safetensors to torch") { sweep_all("to torch"); }
TEST_CASE("IO-01, IO-02, IO-03, IO-04, IO-08, IO-21: each call on a file fails, is short or is interrupted: npz") { sweep_all("to npz"); }
TEST_CASE("IO-01, IO-02, IO-03, IO-04, IO-08, IO-21: each call on a file fails, is short or is interrupted: folder to folder") { sweep_all("folder"); }
TEST_CASE("IO-01, IO-02, IO-03, IO-08: calls on a file fail: single file to pipeline folder") { sweep_all("pipeline"); }

namespace {

outcome convert(const strings& arguments, const how& options = {}) {
  strings all = arguments;
  all.insert(all.end(), {"--quiet", "--threads", "1"});
  return faults::run("convert-weights", all, options);
}

/// Becomes a user without rights where the test is run by root, for whom nothing is forbidden.
void drop_rights() {
  if (::geteuid() == 0 && (::setgroups(0, nullptr) != 0 || ::setresgid(65534, 65534, 65534) != 0 || ::setresuid(65534, 65534, 65534) != 0)) ::_exit(126);
}

void limit(int resource, rlim_t value) {
  const ::rlimit both{value, value};
  if (::setrlimit(static_cast<decltype(RLIMIT_CORE)>(resource), &both) != 0) ::_exit(126);
}

/// `shards` files of `each` tensors of one F32 element, and their index; the path of the index.
std::string many_shards(const sources& work, unsigned shards, unsigned each) {
  const std::string folder = work / "in/many";
  const std::string path = folder + "/model.safetensors.index.json";
  std::string map;
  unsigned number = 0;
  for (unsigned k = 0; k < shards; ++k) {
    std::vector<std::pair<std::string, std::uint64_t>> tensors;
    const std::string name = "model-" + std::to_string(10000 + k) + ".safetensors";
    for (unsigned i = 0; i < each; ++i) {
      tensors.emplace_back("t" + std::to_string(1'000'000'000 + number++), 1);
      map += (map.empty() ? "\"" : ",\"") + tensors.back().first + "\":\"" + name + "\"";
    }
    programs::write_text(folder + "/" + name, safetensors_bytes(tensors));
  }
  programs::write_text(path, "{\"weight_map\":{" + map + "}}");
  return path;
}

}  // namespace

TEST_CASE("IO-01, IO-02: the disk stays full from a call on: nothing is left, and the sentence says what was needed") {
  const sources work;
  for (const char* name : {"cast", "shards", "to torch"}) {
    subject s(work, work.named(name));
    s.plant_old_output();
    for (const char* calls : {"reserve", "write", "sync", "mkdir"}) {
      s.reset();
      const outcome run = s.start(std::string(calls) + ":1+:ENOSPC");
      CAPTURE(name, calls, run.err);
      REQUIRE(run.happened);
      CHECK(run.status == NOSPC);
      CHECK(judge_failure(s, run) == "");
      if (std::string(calls) == "reserve") {
        CHECK(run.err.find("(expected ") != std::string::npos);
        CHECK(run.err.find(" bytes free); free disk space or choose another place") != std::string::npos);
      }
    }
  }
}

TEST_CASE("IO-07: output over input, by its name, a symbolic link or a hard link: the result is right, the source is whole until then") {
  const sources work;
  const std::string bytes = programs::read_text(work.safetensors());
  const outcome separate = convert({work.safetensors(), work / "expected.safetensors", "--dtype", "f16"});
  REQUIRE(separate.status == 0);
  const std::string expected = programs::read_text(work / "expected.safetensors");
  const fs::path folder = work.folder().path() / "place";
  const auto begin = [&] {
    fs::remove_all(folder);
    programs::write_text(folder / "model.safetensors", bytes);
    fs::create_symlink("model.safetensors", folder / "symbolic.safetensors");
    fs::create_hard_link(folder / "model.safetensors", folder / "hard.safetensors");
  };
  for (const char* target : {"model.safetensors", "symbolic.safetensors", "hard.safetensors"}) {
    CAPTURE(target);
    begin();
    const outcome unforced = convert({folder / "model.safetensors", folder / target, "--dtype", "f16"});
    CHECK(unforced.status == PTH);
    CHECK(programs::read_text(folder / "model.safetensors") == bytes);
    const outcome run = convert({folder / "model.safetensors", folder / target, "--dtype", "f16", "--force"});
    CAPTURE(run.err);
    CHECK(run.status == 0);
    CHECK(programs::read_text(folder / target) == expected);
    CHECK(programs::read_text(folder / "model.safetensors") == (std::string(target) == "hard.safetensors" ? bytes : expected));
    CHECK(programs::listing(folder) == strings{"hard.safetensors", "model.safetensors", "symbolic.safetensors"});
    begin();
    const outcome failed = convert({folder / "model.safetensors", folder / target, "--dtype", "f16", "--force"},
                                   {.root = work.folder().path().string(), .fault = "sync:1:EIO"});
    CHECK(failed.status == IO);
    CHECK(programs::read_text(folder / "model.safetensors") == bytes);
  }
}

TEST_CASE("IO-07: an output folder that holds the source, or lies in it") {
  const sources work;
  const std::string index = work.shards(), folder = fs::path(index).parent_path();
  const snapshot before = look(folder);
  for (const std::string& target : {folder, (work / "in"), folder + "/../shards"}) {
    const outcome run = convert({index, target, "--to", "safetensors", "--shard-size", "9kB", "--force"});
    CAPTURE(target, run.err);
    CHECK((run.status == USE || run.status == DENY));
    CHECK(look(folder) == before);
  }
  const outcome inside = convert({index, folder + "/deeper", "--to", "safetensors", "--shard-size", "9kB"});
  CAPTURE(inside.err);
  CHECK(inside.status == 0);
  fs::remove_all(folder + "/deeper");
  CHECK(look(folder) == before);
}

TEST_CASE("IO-09: an output folder that is missing, read-only or a file; a limit on the size of files") {
  const sources work;
  const std::string source = work.safetensors();
  CHECK(convert({source, work / "out/a/b/model.safetensors"}).status == 0);
  programs::write_text(work / "out/file", "x");
  const outcome in_file = convert({source, work / "out/file/model.safetensors"});
  CHECK(in_file.err == "convert-weights: PTH " + (work / "out/file") +
                           ": a file lies where the folder of the output belongs (expected a folder); choose another path or remove the file\n");
  CHECK(in_file.status == PTH);
  const std::string closed = work / "out/closed";
  fs::create_directories(closed);
  fs::permissions(closed, fs::perms::owner_read | fs::perms::owner_exec | fs::perms::others_read | fs::perms::others_exec);
  const outcome read_only = convert({source, closed + "/model.safetensors"}, {.before_start = drop_rights});
  CHECK(read_only.status == IO);
  CHECK(read_only.err == "convert-weights: IO " + closed + "/model.safetensors: cannot create the folder: Permission denied (errno 13)\n");
  CHECK(fs::is_empty(closed));
  const outcome limited = convert({source, work / "out/limited.safetensors"}, {.before_start = [] { limit(RLIMIT_FSIZE, 30'000); }});
  CHECK(limited.status == NOSPC);
  CHECK(limited.err == "convert-weights: NOSPC " + (work / "out/limited.safetensors") +
                           ": cannot reserve the file's space: File too large (errno 27) (expected " +
                           std::to_string(fs::file_size(work / "out/a/b/model.safetensors")) +
                           " bytes, found 30000 bytes free); free disk space or choose another place\n");
  CHECK(programs::listing(work / "out") == strings{"a", "closed", "file"});
}

TEST_CASE("IO-10, BIG-04: a thousand shards with 16 descriptors, and a hundred thousand tensors with 64") {
  const sources work;
  const std::string few = many_shards(work, 1000, 1);
  for (const rlim_t descriptors : {rlim_t{16}, rlim_t{64}}) {
    const std::string one = work / ("out/one" + std::to_string(descriptors) + ".safetensors");
    const outcome join = convert({few, one}, {.before_start = [=] { limit(RLIMIT_NOFILE, descriptors); }});
    CAPTURE(descriptors, join.err);
    CHECK(join.status == 0);
    const outcome split = convert({one, work / ("out/split" + std::to_string(descriptors)), "--to", "safetensors", "--shard-size", "4"},
                                  {.before_start = [=] { limit(RLIMIT_NOFILE, descriptors); }});
    CAPTURE(split.err);
    CHECK(split.status == 0);
    if (join.status == 0 && split.status == 0) CHECK(programs::listing(work / ("out/split" + std::to_string(descriptors))).size() == 1001);
  }
  const std::string many = many_shards(work, 1000, 100);
  const auto begin = std::chrono::steady_clock::now();
  const outcome run = convert({many, work / "out/many.safetensors"}, {.before_start = [] { limit(RLIMIT_NOFILE, 64); }});
  CAPTURE(run.err);
  CHECK(run.status == 0);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(30));
}

TEST_CASE("IO-10: too few descriptors for anything is one clean sentence") {
  const sources work;
  const std::string index = many_shards(work, 20, 1);
  std::size_t started = 0;
  for (rlim_t descriptors = 4; descriptors <= 12; ++descriptors) {
    fs::remove_all(work / "out");
    outcome run;
    try {
      run = convert({index, work / "out/model.safetensors"}, {.before_start = [=] { limit(RLIMIT_NOFILE, descriptors); }});
    } catch (const std::runtime_error&) {
      continue;  // with so few, beside those that the test inherited, the system cannot load the program
    }
    ++started;
    CAPTURE(descriptors, run.status, run.err);
    CHECK((run.status == 0 || run.status == IO));
    if (run.status == IO) CHECK(run.err.find("Too many open files (errno 24)") != std::string::npos);
    if (run.status == IO && fs::exists(work / "out")) CHECK(programs::listing(work / "out").empty());
  }
  CHECK(started >= 3);
}

#if !defined(__SANITIZE_ADDRESS__)
TEST_CASE("IO-12: hostile files under an address space of 256 MiB") {
  const sources work;
  const fs::path folder = work.folder().path() / "hostile";
  const auto le = [](std::uint64_t n) { return std::string(reinterpret_cast<const char*>(&n), sizeof n); };
  programs::write_text(folder / "length.safetensors", le(std::uint64_t{1} << 40) + "{}");
  programs::write_text(folder / "limit.safetensors", le(99'000'000) + "{");
  programs::write_text(folder / "sparse.safetensors", le(99'000'000) + "{");
  fs::resize_file(folder / "sparse.safetensors", 4'000'000'000);  // a header of 99 MB of zero bytes that is there
  std::string long_name = "{\"" + std::string(20'000'000, 'n') + "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
  programs::write_text(folder / "name.safetensors", le(long_name.size()) + long_name + "abcd");
  std::string huge = "{\"t\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,4]}}";
  programs::write_text(folder / "shape.safetensors", le(huge.size()) + huge + "abcd");
  programs::write_text(folder / "index.safetensors.index.json", "{\"weight_map\":{" + std::string(10'000'000, ' '));
  programs::write_text(folder / "count.gguf", "GGUF" + std::string("\3\0\0\0", 4) + le(std::uint64_t{1} << 60) + le(std::uint64_t{1} << 60));
  programs::write_text(folder / "string.gguf", "GGUF" + std::string("\3\0\0\0", 4) + le(1) + le(1) + le(std::uint64_t{1} << 62) + "x");
  programs::write_text(folder / "bytes.pt", std::string("\x80\x04\x8e", 3) + le(std::uint64_t{1} << 62) + "abc.");
  programs::write_text(folder / "shape.npy", std::string("\x93NUMPY\1\0", 8) + std::string("v\0", 2) +
                                                 "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 8), }" + std::string(41, ' ') + "\n");
  for (const auto& file : fs::directory_iterator(folder)) {
    const outcome run = convert({file.path(), work / "out/model.safetensors"}, {.before_start = [] { limit(RLIMIT_AS, 256u << 20); }});
    CAPTURE(file.path(), run.status, run.err);
    CHECK((run.status == FMT || run.status == LIM || run.status == UNS));
    CHECK(run.err.find("memory") == std::string::npos);
    CHECK(!fs::exists(work / "out"));
  }
}
#endif

TEST_CASE("IO-13: files that nest deeply, on a stack of 256 KiB") {
  const sources work;
  const fs::path folder = work.folder().path() / "deep";
  const auto le = [](std::uint64_t n) { return std::string(reinterpret_cast<const char*>(&n), sizeof n); };
  const auto times = [](std::size_t count, const std::string& text) {
    std::string out;
    for (std::size_t i = 0; i < count; ++i) out += text;
    return out;
  };
  const std::string arrays(1'000'000, '['), objects = times(300'000, "{\"a\":");
  programs::write_text(folder / "arrays.safetensors", le(arrays.size()) + arrays);
  programs::write_text(folder / "objects.safetensors", le(objects.size()) + objects);
  programs::write_text(folder / "arrays.safetensors.index.json", arrays);
  programs::write_text(folder / "map.safetensors.index.json", "{\"weight_map\":" + objects);
  programs::write_text(folder / "tuples.pt", "\x80\x02" + times(1'000'000, ")\x85") + ".");
  programs::write_text(folder / "marks.pt", "\x80\x02" + std::string(1'000'000, '('));
  programs::write_text(folder / "lists.pt", "\x80\x02" + times(500'000, "]") + times(499'999, "a") + ".");
  programs::write_text(folder / "dicts.pt", "\x80\x02" + times(500'000, "}K\x01") + times(499'999, "s") + ".");
  const auto small_stack = [] { limit(RLIMIT_STACK, 256 * 1024); };
  for (const auto& file : fs::directory_iterator(folder)) {
    const outcome run = convert({file.path(), work / "out/model.safetensors"}, {.before_start = small_stack});
    CAPTURE(file.path(), run.status, run.err);
    CHECK((run.status == FMT || run.status == LIM));
    CHECK(!fs::exists(work / "out"));
  }
  for (const std::string& source : {work.safetensors(), work.torch(), work.shards()}) {
    const outcome run = convert({source, work / "out/model.safetensors", "--force"}, {.before_start = small_stack});
    CAPTURE(source, run.err);
    CHECK(run.status == 0);
  }
}

TEST_CASE("IO-18, IO-19: a replaced file stays as private as it was, also while its successor is written") {
  const sources work;
  subject s(work, work.named("cast"));
  s.plant_old_output();
  s.reset();
  REQUIRE(s.start("sync:1:kill").status == 128 + SIGKILL);
  bool seen = false;
  for (const auto& [path, e] : look(s.folder()))
    if (is_temporary(path) && e.kind == 'd') {
      seen = true;
      CHECK(e.mode == 0700);
    }
  CHECK(seen);
  const outcome run = s.start_again();
  REQUIRE(run.status == 0);
  const snapshot after = look(s.folder());
  CHECK(after.at("new/model.safetensors").mode == 0600);
  fs::permissions(s.folder() / "new/model.safetensors", fs::perms::set_uid | fs::perms::owner_all | fs::perms::group_read);
  REQUIRE(s.start_again().status == 0);
  CHECK(look(s.folder()).at("new/model.safetensors").mode == 0740);  // who may use it, but not as whom it runs
  CHECK(s.before().size() == after.size());
}

TEST_CASE("IO-20: the temporary folder of the system is not used; nothing outside of what was named is opened (U5)") {
  const sources work;
  for (const char* name : {"cast", "shards", "from torch", "to torch", "to npz", "folder", "pipeline", "from shards"}) {
    const conversion c = work.named(name);
    CAPTURE(name);
    const std::string list = work / ("opened " + std::string(name));
    const outcome run = faults::run("convert-weights", c.arguments,
                                    {.root = work / "out", .opens = list, .environment = {"TMPDIR=/nonexistent/tmp", "TMP=/nonexistent/tmp"}});
    CAPTURE(run.err);
    CHECK(run.status == 0);
    std::ifstream lines(list);
    std::string path;
    unsigned count = 0;
    while (std::getline(lines, path)) {
      ++count;
      CAPTURE(path);
      const bool relative_to_ours = path.find('/') == std::string::npos;  // a folder that is being removed
      const bool fine = path.starts_with(work / "in") || path.starts_with(work / "out") || path == work.folder().path() ||
                        path.starts_with("/proc/self/") || path.starts_with("/sys/") || path.starts_with("/proc/") || path == "/dev/null" ||
                        relative_to_ours;
      if (!fine) CHECK(fine);
    }
    CHECK(count > 2);
    fs::remove_all(work / "out");
  }
}

TEST_CASE("IO-22: closed or full standard streams do not change the outcome") {
  const sources work;
  const auto close_all = [] {
    for (const int number : {0, 1, 2}) ::close(number);
  };
  const auto full = [] {
    const int device = ::open("/dev/full", O_WRONLY);
    if (device < 0 || ::dup2(device, 1) < 0 || ::dup2(device, 2) < 0) ::_exit(126);
  };
  CHECK(convert({work.safetensors(), work / "out/a.safetensors", "--dtype", "f16"}, {.before_start = close_all}).status == 0);
  CHECK(convert({work.safetensors(), work / "out/b.safetensors", "--dtype", "f16"}, {.before_start = full}).status == 0);
  CHECK(convert({work / "none", work / "out/c.safetensors"}, {.before_start = close_all}).status == IO);
  CHECK(convert({work / "none", work / "out/c.safetensors"}, {.before_start = full}).status == IO);
  CHECK(programs::read_text(work / "out/a.safetensors") == programs::read_text(work / "out/b.safetensors"));
  CHECK(programs::listing(work / "out") == strings{"a.safetensors", "b.safetensors"});
}

TEST_CASE("IO-24: an input that may not be read, is a link to nothing, or is not there") {
  const sources work;
  const std::string secret = work / "secret.safetensors", dangling = work / "dangling.safetensors";
  programs::write_text(secret, model_bytes());
  fs::permissions(secret, fs::perms::owner_write);
  fs::create_symlink("nothing", dangling);
  fs::permissions(work.folder().path(), fs::perms::all);
  const outcome denied = convert({secret, work / "out.safetensors"}, {.before_start = drop_rights});
  CHECK(denied.err == "convert-weights: IO " + secret + ": cannot open the file: Permission denied (errno 13)\n");
  CHECK(denied.status == IO);
  for (const std::string& path : {dangling, work / "none"}) {
    const outcome missing = convert({path, work / "out.safetensors"});
    CHECK(missing.err == "convert-weights: IO " + path + ": cannot find the file: No such file or directory (errno 2)\n");
    CHECK(missing.status == IO);
  }
  CHECK(!fs::exists(work / "out.safetensors"));
}
