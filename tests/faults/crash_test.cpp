// SPDX-License-Identifier: MIT
//
// convert-weights dies, or is asked to end, at every system call on a file and at any time: the old output or the complete new one is
// there, nothing else; what is left over has a temporary name, and the next run removes it.
#include <sys/wait.h>

#include <array>
#include <csignal>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "faults/support/conversions.hpp"
#include "faults/support/sweep.hpp"
#include "support/catch.hpp"

namespace {

using namespace faults;

/// What lies there besides temporary names, and folders that were made for the output and are empty.
snapshot without_leftovers(const snapshot& all) {
  snapshot out;
  for (const auto& [path, e] : all) {
    if (is_temporary(path)) continue;
    bool used = e.kind != 'd';
    for (const auto& [other, f] : all) used = used || (f.kind != 'd' && other.starts_with(path + "/") && !is_temporary(other));
    if (used) out[path] = e;
  }
  return out;
}

/// What is wrong with the output after a run that died; empty if it is the old one or the new one, whole.
std::string judge_crash(const subject& s, const snapshot& left) {
  const snapshot output = without_leftovers(left);
  if (output == without_leftovers(s.before())) return {};
  std::map<std::string, std::string> complete = s.complete();
  std::erase_if(complete, [&](const auto& file) { return !output.contains(file.first) && file.second == "d"; });
  if (contents_of(output) == complete) return {};
  std::string names;
  for (const auto& [path, e] : left) names += " " + path + "(" + std::to_string(e.contents.size()) + ")";
  return "neither the old nor the new output:" + names;
}

void kill_at_every_call(const std::string& name, bool old) {
  const sources work;
  subject s(work, work.named(name));
  if (old) s.plant_old_output();
  bool left_old = false, left_new = false, left_temporary = false;
  for (std::uint64_t k = 1;; k = s.after(k, "any")) {
    s.reset();
    const outcome died = s.start("any:" + std::to_string(k) + ":kill");
    INFO(name << (old ? ", an older output there" : "") << ", killed at call " << k);
    if (!died.happened) {
      CHECK(judge_success(s, died) == "");
      CHECK(left_old);
      CHECK(left_temporary);
      CHECK((left_new || !old));  // without an older output, the rename is followed by the call that ends the run's work
      return;
    }
    REQUIRE(died.status == 128 + SIGKILL);
    const snapshot left = look(s.folder());
    const std::string wrong = judge_crash(s, left);
    if (!wrong.empty()) CHECK(wrong == "");
    const bool is_old = without_leftovers(left) == without_leftovers(s.before());
    left_old = left_old || is_old, left_new = left_new || !is_old;
    for (const auto& [path, e] : left) left_temporary = left_temporary || is_temporary(path);
    const outcome next = s.start_again();
    const std::string not_recovered = judge_success(s, next);
    if (!not_recovered.empty()) CHECK(not_recovered == "");
  }
}

/// Sends `number` to the program at `fault`; it ends with 128 + number and leaves nothing, or it was finished already.
void end_at_every_call(const std::string& name, const char* action, int number) {
  const sources work;
  subject s(work, work.named(name));
  s.plant_old_output();
  unsigned ended = 0;
  for (std::uint64_t k = 1;; k = s.after(k, "any")) {
    s.reset();
    const outcome run = s.start("any:" + std::to_string(k) + ":" + action);
    INFO(name << ", " << action << " at call " << k << ", exit status " << run.status << ", stderr: " << run.err);
    if (!run.happened) break;
    ended += run.status != 0;
    if (run.status == 0) {
      const std::string wrong = judge_success(s, run);
      if (!wrong.empty()) CHECK(wrong == "");
    } else {
      if (run.status != 128 + number) CHECK(run.status == 128 + number);
      if (look(s.folder()) != s.before()) CHECK(contents_of(look(s.folder())) == contents_of(s.before()));
    }
  }
  CHECK(ended > 0);
}

}  // namespace

TEST_CASE("IO-15, IO-17: killed at each call: safetensors to safetensors") {
  kill_at_every_call("cast", false);
  kill_at_every_call("cast", true);
}
TEST_CASE("IO-15, IO-17: killed at each call: shards") {
  kill_at_every_call("shards", false);
  kill_at_every_call("shards", true);
}
TEST_CASE("IO-15, IO-17: killed at each call: torch to safetensors") { kill_at_every_call("from torch", true); }
TEST_CASE("IO-15, IO-17: killed at each call: safetensors to torch") { kill_at_every_call("to torch", true); }
TEST_CASE("IO-15, IO-17: killed at each call: npz") { kill_at_every_call("to npz", true); }
TEST_CASE("IO-15, IO-17: killed at each call: folder to folder") {
  kill_at_every_call("folder", false);
  kill_at_every_call("folder", true);
}
TEST_CASE("IO-15, IO-17: killed at each call: single file to pipeline folder") { kill_at_every_call("pipeline", true); }

TEST_CASE("IO-14: asked to end at each call") {
  end_at_every_call("cast", "term", SIGTERM);
  end_at_every_call("shards", "int", SIGINT);
  end_at_every_call("folder", "hup", SIGHUP);
}

TEST_CASE("IO-14: SIGINT, SIGTERM and SIGHUP at 1,000 random times") {
  const sources work;
  subject s(work, work.named("cast"));
  s.plant_old_output();
  s.reset();
  std::mt19937 random(7);
  const std::array<int, 3> signals = {SIGINT, SIGTERM, SIGHUP};
  unsigned ended = 0, finished = 0;
  for (unsigned round = 0; round < 1000; ++round) {
    const int number = signals[round % signals.size()];
    // Most of a run is the start of the program; most signals shall meet it at work.
    const auto wait = static_cast<::useconds_t>(random() % 8000);
    const outcome run = s.start_while([&](pid_t child) {
      ::usleep(wait);
      ::kill(child, number);
    });
    INFO("signal " << number << " after " << wait << " us, exit status " << run.status << ", stderr: " << run.err);
    if (run.status == 0) {
      ++finished;
      const std::string wrong = judge_success(s, run);
      if (!wrong.empty()) CHECK(wrong == "");
      s.reset();
    } else {
      ++ended;
      if (run.status != 128 + number) CHECK(run.status == 128 + number);
      if (look(s.folder()) != s.before()) CHECK(contents_of(look(s.folder())) == contents_of(s.before()));
    }
  }
  CAPTURE(ended, finished);
  CHECK(ended > 0);
}
