// SPDX-License-Identifier: MIT
//
// Several at once: programs that write the same output, readers of what is being replaced, cancelling at any time, many runs in one
// process.
#include <sys/file.h>
#include <sys/wait.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <malloc.h>

#include <cstdint>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "faults/support/conversions.hpp"
#include "faults/support/sweep.hpp"
#include "support/catch.hpp"
#include "tensorsmith/format/safetensors/read.hpp"
#include "tensorsmith/format/safetensors/sharded.hpp"
#include "tensorsmith/format/safetensors/write.hpp"
#include "tensorsmith/format/safetensors/write_sharded.hpp"
#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/executor.hpp"

namespace {

using namespace faults;
namespace ts = tensorsmith;

/// Starts the programs at once and waits for all of them.
std::vector<outcome> run_together(const std::vector<strings>& arguments, const how& options = {}) {
  std::vector<outcome> out(arguments.size());
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < arguments.size(); ++i)
    threads.emplace_back([&, i] { out[i] = faults::run("convert-weights", arguments[i], options); });
  for (std::thread& t : threads) t.join();
  return out;
}

bool has_leftovers(const fs::path& folder) {
  for (const auto& [path, e] : look(folder))
    if (is_temporary(path)) return true;
  return false;
}

std::size_t open_descriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

/// A catalog of `tensors` F32 tensors of 256 elements that all hold `value`.
ts::catalog filled(float value, unsigned tensors) {
  ts::catalog out;
  std::vector<std::byte> bytes(256 * sizeof value);
  for (std::size_t i = 0; i < 256; ++i) std::memcpy(bytes.data() + i * sizeof value, &value, sizeof value);
  const auto source = std::make_shared<ts::memory_source>("memory", bytes);
  for (unsigned i = 0; i < tensors; ++i) {
    const std::string name = "tensor." + std::to_string(100 + i);
    REQUIRE(out.add(name, ts::tensor_ref{ts::stored_tensor(source, 0, ts::dtype::f32, {256}, name), 0}, name));
  }
  return out;
}

/// The one value that all elements of all tensors have; nothing if they differ or cannot be read.
std::optional<float> only_value(const ts::catalog& tensors, const ts::job& run, std::string& error) {
  std::optional<float> only;
  for (const ts::catalog_entry& e : tensors.entries()) {
    const auto bytes = ts::materialize(e.tensor, run);
    if (!bytes) return error = bytes.error().message(), std::nullopt;
    for (std::size_t i = 0; i < bytes->size(); i += sizeof(float)) {
      float value = 0;
      std::memcpy(&value, bytes->data() + i, sizeof value);
      if (only && *only != value) return error = "mixed", std::nullopt;
      only = value;
    }
  }
  return only;
}

}  // namespace

TEST_CASE("CON-01: eight runs write the same output: one wins, the others are refused or write the same") {
  const sources work;
  const std::string source = work.safetensors();
  fs::create_directories(work / "out");
  const std::string target = work / "out/model.safetensors";
  for (const bool force : {false, true}) {
    for (int round = 0; round < 10; ++round) {
      strings arguments{source, target, "--dtype", "f16", "--quiet"};
      if (force) arguments.push_back("--force");
      if (!force) fs::remove(target);
      const auto runs = run_together(std::vector<strings>(8, arguments));
      unsigned winners = 0;
      for (const outcome& r : runs) {
        CAPTURE(r.err);
        winners += r.status == 0;
        if (r.status != 0) {
          CHECK_FALSE(force);
          CHECK(r.status == PTH);
          const bool early = r.err == "convert-weights: PTH " + target + ": the output file already exists; pass --force to replace it, or choose another path\n";
          const bool late = r.err == "convert-weights: PTH " + target + ": the output file appeared while it was being written; another run writes there; pass "
                                     "--force to replace it, or choose another path\n";
          CHECK((early || late));
        }
      }
      CHECK(winners == (force ? 8 : 1));
      CHECK_FALSE(has_leftovers(work / "out"));
    }
  }
  const outcome alone = faults::run("convert-weights", {source, work / "alone.safetensors", "--dtype", "f16", "--quiet"});
  REQUIRE(alone.status == 0);
  CHECK(programs::read_text(target) == programs::read_text(work / "alone.safetensors"));
}

TEST_CASE("CON-02: runs of different options write the same folder: index and shards are of one run") {
  const sources work;
  const std::string source = work.safetensors(), target = work / "out/model";
  fs::create_directories(work / "out");
  const strings sizes = {"20kB", "9kB", "30kB", "12kB"};
  std::vector<std::map<std::string, std::string>> alone;
  std::vector<strings> arguments;
  for (const std::string& size : sizes) {
    const std::string folder = work / ("alone-" + size);
    REQUIRE(faults::run("convert-weights", {source, folder, "--to", "safetensors", "--shard-size", size, "--quiet"}).status == 0);
    alone.push_back(contents_of(look(folder)));
    arguments.push_back({source, target, "--to", "safetensors", "--shard-size", size, "--force", "--quiet"});
    arguments.push_back(arguments.back());
  }
  for (int round = 0; round < 15; ++round) {
    const auto runs = run_together(arguments);
    for (const outcome& r : runs) {
      CAPTURE(r.err);
      CHECK(r.status == 0);
    }
    CHECK(std::count(alone.begin(), alone.end(), contents_of(look(target))) >= 1);
    CHECK_FALSE(has_leftovers(work / "out"));
  }
}

TEST_CASE("CON-03: a leftover is removed although its process number is in use again") {
  const sources work;
  const std::string left = work / ("out/.model.safetensors.tensorsmith-" + std::to_string(::getpid()) + "-7.tmp");
  fs::create_directories(left);
  programs::write_text(left + "/output", "half");
  const int held = ::open(left.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  REQUIRE(::flock(held, LOCK_EX) == 0);
  const auto convert = [&](const std::string& more) {
    const outcome run = faults::run("convert-weights", {work.safetensors(), work / "out/model.safetensors", "--quiet", more});
    CAPTURE(run.err);
    CHECK(run.status == 0);
  };
  convert("--quiet");
  CHECK(fs::exists(left));  // CON-08: its owner lives
  ::close(held);            // as at the end of a process
  convert("--force");
  CHECK_FALSE(fs::exists(left));
}

TEST_CASE("CON-04: a file system that grants every lock") {
  const sources work;
  fs::create_directories(work / "out");
  const strings arguments{work.safetensors(), work / "out/model.safetensors", "--dtype", "f16", "--force", "--quiet"};
  for (int round = 0; round < 10; ++round) {
    for (const outcome& r : run_together(std::vector<strings>(8, arguments), {.root = work.folder().path().string(), .fault = "lock:1+:lie"})) {
      CAPTURE(r.err);
      CHECK(r.status == 0);
      CHECK(r.happened);
    }
    CHECK_FALSE(has_leftovers(work / "out"));
  }
  REQUIRE(faults::run("convert-weights", {work.safetensors(), work / "alone.safetensors", "--dtype", "f16", "--quiet"}).status == 0);
  CHECK(programs::read_text(work / "out/model.safetensors") == programs::read_text(work / "alone.safetensors"));
}

TEST_CASE("CON-05: who reads a file while it is replaced sees the old one or the new one") {
  const fast_folder work;
  const std::string path = work / "model.safetensors";
  const char* given = std::getenv("TENSORSMITH_RACE_ROUNDS");
  const unsigned rounds = given ? static_cast<unsigned>(std::stoul(given)) : 10'000;
  const ts::catalog even = filled(2, 3), odd = filled(3, 3);
  ts::job run;
  run.threads = 1;
  REQUIRE(ts::write_safetensors(even, path, {}, run));
  std::atomic<bool> stop = false;
  std::atomic<unsigned> reads = 0, wrong = 0;
  std::string what;
  std::thread reader([&] {
    ts::job mine;
    mine.threads = 1;
    while (!stop) {
      std::string error;
      const auto file = ts::open_file(path);
      const auto tensors = file ? ts::read_safetensors(*file, mine) : ts::result<ts::catalog>(file.error());
      const auto value = tensors ? only_value(*tensors, mine, error) : std::nullopt;
      if (!tensors) error = tensors.error().message();
      if (!value && wrong++ == 0) what = error;
      ++reads;
    }
  });
  for (unsigned round = 0; round < rounds; ++round)
    if (!ts::write_safetensors(round % 2 ? even : odd, path, {.force = true}, run) && wrong++ == 0) what = "not written";
  stop = true;
  reader.join();
  CAPTURE(reads.load(), what);
  CHECK(wrong == 0);
  CHECK(reads > 100);
}

TEST_CASE("CON-05: who opens shards while their folder is replaced gets those of one run, or an error") {
  const fast_folder work;
  const std::string folder = work / "model";
  const char* given = std::getenv("TENSORSMITH_RACE_ROUNDS");
  const unsigned rounds = given ? static_cast<unsigned>(std::stoul(given)) / 10 : 1'000;
  const ts::catalog even = filled(2, 6), odd = filled(3, 6);
  ts::job run;
  run.threads = 1;
  const ts::sharded_write_options options{.max_shard_bytes = 2048, .force = true};
  REQUIRE(ts::write_safetensors_sharded(even, folder, options, run));
  std::atomic<bool> stop = false;
  std::atomic<unsigned> whole = 0, refused = 0, mixed = 0;
  std::thread reader([&] {
    while (!stop) {
      ts::job mine;
      mine.threads = 1;
      std::string error;
      const auto tensors = ts::read_sharded_safetensors(folder + "/model.safetensors.index.json", mine);
      const auto value = tensors ? only_value(*tensors, mine, error) : std::nullopt;
      mixed += error == "mixed";
      (value ? whole : refused)++;
    }
  });
  for (unsigned round = 0; round < rounds; ++round) REQUIRE(ts::write_safetensors_sharded(round % 2 ? even : odd, folder, options, run));
  stop = true;
  reader.join();
  CAPTURE(whole.load(), refused.load());
  CHECK(mixed == 0);
  CHECK(whole > 10);
}

TEST_CASE("IO-05, IO-06: the source is cut off, grows, changes or is replaced during the run: nothing is published") {
  const fast_folder work;
  const std::string source = work / "source.safetensors", target = work / "out/model.safetensors";
  std::vector<std::pair<std::string, std::uint64_t>> tensors;
  for (int i = 0; i < 40; ++i) tensors.emplace_back("t" + std::to_string(100 + i), 1000);
  const std::string bytes = safetensors_bytes(tensors);
  const struct {
    const char* what;
    std::function<void()> happens;
    std::string message;
  } cases[] = {
      {"cut off", [&] { fs::resize_file(source, bytes.size() / 2); },
       "the file became shorter while it was being read (expected " + std::to_string(bytes.size()) + " bytes, found " + std::to_string(bytes.size() / 2) +
           " bytes); run again when it is complete"},
      {"grows", [&] { fs::resize_file(source, bytes.size() + 1); },
       "the file changed while it was being read (expected " + std::to_string(bytes.size()) + " bytes, found " + std::to_string(bytes.size() + 1) +
           " bytes); run again when it is complete"},
      {"changes", [&] { std::fstream(source, std::ios::in | std::ios::out | std::ios::binary).seekp(5000) << "changed"; },
       "the file changed while it was being read (expected " + std::to_string(bytes.size()) + " bytes, found " + std::to_string(bytes.size()) +
           " bytes); run again when it is complete"},
      {"is replaced",
       [&] {
         programs::write_text(source + ".new", bytes);
         fs::rename(source + ".new", source);
       },
       "the file was replaced while it was being read (expected " + std::to_string(bytes.size()) + " bytes, found " + std::to_string(bytes.size()) +
           " bytes); run again when it is complete"},
  };
  for (const auto& c : cases) {
    for (const bool cast : {false, true}) {
      CAPTURE(c.what, cast);
      programs::write_text(source, bytes);
      const auto file = ts::open_file(source);
      REQUIRE(file);
      ts::job run;
      run.threads = 1;
      const auto read = ts::read_safetensors(*file, run);
      REQUIRE(read);
      ts::catalog chosen;
      for (const ts::catalog_entry& e : read->entries()) {
        ts::tensor_ref tensor = e.tensor;
        if (cast) tensor = *ts::cast(tensor, ts::dtype::f16);
        REQUIRE(chosen.add(e.name, tensor, e.origin));
      }
      bool happened = false;
      ::usleep(2000);  // the time of change is told in steps of the clock
      run.on_progress = [&](const ts::progress&) {
        if (!std::exchange(happened, true)) c.happens();
      };
      const auto written = ts::write_safetensors(chosen, target, {}, run);
      REQUIRE(happened);
      REQUIRE_FALSE(written);
      CHECK(written.error().message() == "ITG " + source + ": " + c.message);
      CHECK_FALSE(fs::exists(work / "out"));
    }
  }
}

TEST_CASE("CON-06: any number of threads writes the same bytes") {
  const sources work;
  for (const char* name : {"cast", "shards", "from torch", "to torch", "to npz", "folder", "pipeline"}) {
    CAPTURE(name);
    fs::remove_all(work / "out");
    fs::create_directories(work / "out");
    std::map<std::string, std::string> first;
    for (const char* threads : {"1", "2", "5", "16"}) {
      conversion c = work.named(name);
      *(std::find(c.arguments.begin(), c.arguments.end(), "--threads") + 1) = threads;
      c.arguments.insert(c.arguments.end(), {"--force", "--tile", "16K"});
      const outcome run = faults::run("convert-weights", c.arguments);
      CAPTURE(threads, run.err);
      REQUIRE(run.status == 0);
      const auto now = contents_of(look(work / "out"));
      if (first.empty()) first = now;
      CHECK(now == first);
    }
  }
}

TEST_CASE("CON-07: cancelled at 1,000 random points: nothing is left, nothing leaks") {
  const fast_folder work;
  const std::string path = work / "model.safetensors";
  programs::write_text(path, "older");
  const snapshot before = look(work.path());
  ts::catalog tensors;
  {
    const ts::catalog whole = filled(2, 40);
    for (const ts::catalog_entry& e : whole.entries()) {
      auto half = ts::cast(e.tensor, ts::dtype::f16);
      REQUIRE(half);
      REQUIRE(tensors.add(e.name, std::move(half).value(), e.name));
    }
  }
  std::mt19937 random(3);
  unsigned cancelled = 0;
  std::size_t descriptors = 0, memory = 0;
  for (unsigned round = 0; round < 1000; ++round) {
    std::atomic<bool> cancel = false;
    ts::job run;
    run.threads = 2;
    run.cancel = &cancel;
    const std::uint64_t at = random() % (tensors.bytes() + 2000);
    run.on_progress = [&](const ts::progress& now) {
      if (now.done_bytes >= at) cancel = true;
    };
    const auto written = ts::write_safetensors(tensors, path, {.force = true}, run);
    if (!written) {
      ++cancelled;
      CHECK(written.error().message() == "CANC cancelled; nothing was written");
      if (look(work.path()) != before) CHECK(contents_of(look(work.path())) == contents_of(before));
    } else {
      restore(work.path(), before);
    }
    if (round == 100) descriptors = open_descriptors(), memory = ::mallinfo2().uordblks;
  }
  CHECK(cancelled > 500);
  CHECK(open_descriptors() == descriptors);
  CHECK(::mallinfo2().uordblks < memory + 64 * 1024);
}

TEST_CASE("CON-09, CON-10: 10,000 conversions in one process, and after fork: no descriptor and no memory more than before") {
  const fast_folder work;
  const std::string path = work / "model.safetensors";
  const ts::catalog tensors = filled(2, 3);
  ts::job run;
  run.threads = 1;
  std::size_t descriptors = 0, memory = 0;
  for (unsigned round = 0; round < 10'000; ++round) {
    REQUIRE(ts::write_safetensors(tensors, path, {.force = true}, run));
    {
      const auto file = ts::open_file(path);
      REQUIRE(file);
      REQUIRE(ts::read_safetensors(*file, run));
    }
    if (round == 100) descriptors = open_descriptors(), memory = ::mallinfo2().uordblks;
  }
  CHECK(open_descriptors() == descriptors);
  CHECK(::mallinfo2().uordblks < memory + memory / 100 + 4096);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    run.threads = 2;
    ::_exit(ts::write_safetensors(tensors, path, {.force = true}, run) ? 0 : 1);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(status == 0);
}
