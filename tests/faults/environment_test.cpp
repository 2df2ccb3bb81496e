// SPDX-License-Identifier: MIT
//
// The world around a conversion: locales, a missing home, strange arguments, a processor without vector instructions.
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <clocale>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <locale>
#include <random>
#include <string>
#include <vector>

#include "faults/convert.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/core/convert.hpp"
#include "tensorsmith/format/safetensors/write.hpp"
#include "tensorsmith/io/json.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;
namespace fs = std::filesystem;

namespace {

/// What depends on a locale in careless code: numbers read and written, letters changed, files laid out.
std::string everything(const support::temp_folder& work) {
  const auto value = ts::parse_json(R"({"beta": 0.00085, "large": 1234567.5, "I": 1e-5, "n": 1234567})", "x.json");
  REQUIRE(value);
  CHECK(*value->find("beta")->as_double() == 0.00085);
  CHECK(*value->find("large")->as_double() == 1234567.5);
  ts::catalog tensors;
  REQUIRE(tensors.add("INPUT.i", ts::in_memory({"w", ts::dtype::f32, {2, 1}}, std::vector<std::byte>(8)), "w"));
  const auto plan = ts::plan_safetensors(tensors, {{"title", "\xC4\xB0"}});
  REQUIRE(plan);
  ts::job run;
  REQUIRE(ts::write_safetensors(tensors, work / "m.safetensors", {.metadata = {{"title", "\xC4\xB0"}}, .force = true}, run));
  const ts::failure error{.code = ts::errc::limit, .what = "too long", .file = "x", .expected = std::to_string(1234567), .found = ts::quoted("\xC4\xB0 i I")};
  return ts::write_json(*value) + plan->header + programs::read_text(work / "m.safetensors") + error.message();
}

/// A decimal comma, points between thousands.
class commas final : public std::numpunct<char> {
  char do_decimal_point() const override { return ','; }
  char do_thousands_sep() const override { return '.'; }
  std::string do_grouping() const override { return "\3"; }
};

/// Runs convert-weights after `prepare` in the child. Exit status and standard error.
template <class Prepare>
programs::outcome run_prepared(const std::vector<std::string>& arguments, char** environment, Prepare&& prepare) {
  const std::string program = (programs::folder() / "convert-weights").string();
  std::vector<char*> argv{const_cast<char*>(program.c_str())};
  for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  int out[2];
  REQUIRE(::pipe2(out, O_CLOEXEC) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::dup2(out[1], 2);
    ::dup2(out[1], 1);
    if (!prepare()) ::_exit(126);
    ::execve(program.c_str(), argv.data(), environment);
    ::_exit(127);
  }
  ::close(out[1]);
  programs::outcome done;
  char buffer[4096];
  for (ssize_t got; (got = ::read(out[0], buffer, sizeof buffer)) > 0;) done.err.append(buffer, static_cast<std::size_t>(got));
  ::close(out[0]);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  done.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return done;
}

std::string make_source(const support::temp_folder& work) {
  faults::safetensors_parts parts;
  faults::add_tensor(parts, "w", "F32", {2}, std::string("\0\0\x80\x3F\0\0\0\x40", 8));
  faults::write_parts(work / "in.safetensors", parts);
  return work / "in.safetensors";
}

}  // namespace

TEST_CASE("ENV-01: the host's locale changes nothing") {
  const support::temp_folder work;
  std::setlocale(LC_ALL, "C");
  const std::string expected = everything(work);
  std::size_t tried = 0;
  // Locales of the C library, as far as this machine can make them.
  const std::string locales = work / "locales";
  fs::create_directories(locales);
  ::setenv("LOCPATH", locales.c_str(), 1);
  for (const std::string name : {"de_DE", "tr_TR", "ar_SA"}) {
    const std::string make = "localedef -i " + name + " -f UTF-8 '" + locales + "/" + name + ".UTF-8' >'" + locales + "/log' 2>&1";
    (void)!std::system(make.c_str());
    if (!std::setlocale(LC_ALL, (name + ".UTF-8").c_str())) {
      WARN("this machine cannot make the locale " << name << ": left out");
      continue;
    }
    char text[16];
    std::snprintf(text, sizeof text, "%.1f", 0.5);
    if (name == "de_DE") CHECK(std::string(text) == "0,5");  // the locale is really there
    CHECK(everything(work) == expected);
    ++tried;
  }
  std::setlocale(LC_ALL, "C");
  ::unsetenv("LOCPATH");
  WARN(tried << " locales of the C library tried");
  // The C++ library's global locale, which needs no installation.
  const std::locale before = std::locale::global(std::locale(std::locale::classic(), new commas));
  CHECK(everything(work) == expected);
  std::locale::global(before);
}

TEST_CASE("ENV-03: no home, no search path, no working folder, no /proc") {
  const support::temp_folder work;
  const std::string in = make_source(work), out = work / "out.safetensors";
  char* empty[] = {nullptr};
  const auto check = [&](const programs::outcome& run) {
    CAPTURE(run.err);
    CHECK(run.status == 0);
    CHECK(faults::tensors_of(out) == faults::tensors_of(in));
  };
  check(run_prepared({in, out, "--force"}, empty, [] { return true; }));
  const std::string gone = work / "gone";
  const auto leave = [&] { return ::mkdir(gone.c_str(), 0700) == 0 && ::chdir(gone.c_str()) == 0 && ::rmdir(gone.c_str()) == 0; };
  check(run_prepared({in, out, "--force"}, empty, leave));
  const auto relative = run_prepared({"in.safetensors", "out.safetensors"}, empty, leave);
  CHECK(relative.status == faults::status_of("IO"));
  CHECK(relative.err.find("in.safetensors") != std::string::npos);
  const auto without_proc = run_prepared({in, out, "--force"}, empty, [] {
    return ::unshare(CLONE_NEWNS) == 0 && ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
           ::mount("tmpfs", "/proc", "tmpfs", 0, "size=4k") == 0;
  });
  if (without_proc.status == 126) WARN("this process may not mount over /proc: left out");
  else check(without_proc);
}

TEST_CASE("ENV-04: very many, empty and unknown arguments") {
  const support::temp_folder work;
  const std::string in = make_source(work);
  const auto before = faults::snapshot(work.path());
  const auto refused = [&](const faults::strings& arguments) {
    const auto run = programs::run("convert-weights", arguments);
    CHECK(run.status == 2);
    CHECK(run.err.rfind("convert-weights: USE ", 0) == 0);
    CHECK(run.err.size() < 10'000);
    CHECK(run.out.empty());
    CHECK(faults::snapshot(work.path()) == before);
  };
  refused({});
  refused({in});
  refused({in, ""});
  refused({"", work / "out.safetensors"});
  refused({in, work / "out.safetensors", "--frobnicate"});
  refused({in, work / "out.safetensors", "--to="});
  refused({in, work / "out.safetensors", "--dtype", ""});
  refused({in, work / "out.safetensors", "--threads", "-1"});
  refused({in, work / "out.safetensors", "--memory", "1e9"});
  refused({in, work / "out.safetensors", "third"});
  refused(faults::strings(100'000, "x"));
}

TEST_CASE("ENV-05: without vector instructions the bytes are the same") {
  // kernel_for asks the processor; the scalar definition is what it falls back to.
  const ts::dtype types[] = {ts::dtype::f64, ts::dtype::f32, ts::dtype::f16, ts::dtype::bf16, ts::dtype::f8_e4m3, ts::dtype::f8_e5m2};
  std::mt19937_64 random(7);
  const std::size_t count = 65'536 + 13;
  std::vector<std::byte> in(8 * count), scalar(8 * count), chosen(8 * count);
  std::size_t pairs = 0;
  for (const ts::dtype from : types) {
    for (std::size_t at = 0; at + 8 <= in.size(); at += 8) {
      const std::uint64_t word = random();
      std::memcpy(in.data() + at, &word, 8);
    }
    if (ts::bits_of(from) == 16)  // every code
      for (std::size_t i = 0; i < 65'536; ++i) in[2 * i] = static_cast<std::byte>(i & 0xFF), in[2 * i + 1] = static_cast<std::byte>(i >> 8);
    for (const ts::dtype to : types) {
      const auto kernel = ts::detail::scalar_kernel_for(from, to);
      if (from == to || !kernel) continue;
      const std::size_t bytes = count * ts::bits_of(to) / 8;
      kernel(in.data(), scalar.data(), count);
      ts::convert_elements(from, in.data(), to, chosen.data(), count);
      CAPTURE(ts::name_of(from), ts::name_of(to));
      CHECK(std::memcmp(scalar.data(), chosen.data(), bytes) == 0);
      ++pairs;
    }
  }
  CHECK(pairs >= 12);
}
