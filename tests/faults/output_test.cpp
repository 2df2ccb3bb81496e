// SPDX-License-Identifier: MIT
//
// What we write: readable by strict readers, verified, without foreign bytes, the same every time, everything accounted for.
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "faults/convert.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/format/numpy/write.hpp"
#include "tensorsmith/format/safetensors/write.hpp"
#include "tensorsmith/format/torch/write.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;
namespace fs = std::filesystem;
using namespace std::string_literals;
using faults::converted;
using faults::refused;

namespace {

ts::tensor_ref tensor(ts::dtype type, ts::shape_type shape, unsigned char fill = 1) {
  ts::tensor_info info{"w", type, std::move(shape)};
  std::vector<std::byte> bytes(info.bytes(), static_cast<std::byte>(fill));
  return ts::in_memory(std::move(info), std::move(bytes));
}

/// The contents of the first entry of a zip archive without compression.
std::string first_entry(const std::string& zip) {
  const auto number = [&](std::size_t at, std::size_t bytes) {
    std::size_t out = 0;
    for (std::size_t i = bytes; i-- > 0;) out = (out << 8) | static_cast<unsigned char>(zip.at(at + i));
    return out;
  };
  return zip.substr(30 + number(26, 2) + number(28, 2), number(22, 4));
}

/// Walks a pickle and knows only the opcodes that torch's strict reader has. Returns the globals.
std::set<std::string> globals_of(const std::string& pickle) {
  static const std::map<char, std::size_t> fixed = {  // opcode → bytes of its operand
      {'\x80', 1}, {'}', 0}, {']', 0}, {')', 0}, {'(', 0}, {'t', 0}, {'\x85', 0}, {'\x86', 0}, {'\x87', 0}, {'N', 0}, {'\x88', 0}, {'\x89', 0},
      {'R', 0}, {'b', 0}, {'s', 0}, {'u', 0}, {'a', 0}, {'e', 0}, {'Q', 0}, {'G', 8}, {'J', 4}, {'K', 1}, {'M', 2}, {'q', 1}, {'r', 4},
      {'h', 1}, {'j', 4}, {'\x81', 0}, {'.', 0}};
  std::set<std::string> out;
  for (std::size_t at = 0; at < pickle.size();) {
    const char code = pickle[at++];
    if (code == 'X') {
      std::uint32_t length = 0;
      std::memcpy(&length, pickle.substr(at, 4).data(), 4);
      at += 4 + length;
    } else if (code == '\x8A') {
      at += 1 + static_cast<unsigned char>(pickle.at(at));
    } else if (code == 'c') {
      const std::size_t module = pickle.find('\n', at), name = pickle.find('\n', module + 1);
      REQUIRE(name != std::string::npos);
      out.insert(pickle.substr(at, module - at) + '.' + pickle.substr(module + 1, name - module - 1));
      at = name + 1;
    } else {
      INFO("opcode " << static_cast<int>(static_cast<unsigned char>(code)) << " at " << at - 1);
      REQUIRE(fixed.count(code) == 1);
      at += fixed.at(code);
      if (code == '.') CHECK(at == pickle.size());
    }
  }
  return out;
}

/// Gives other bytes each time it is asked.
class fickle_recipe final : public ts::recipe {
 public:
  std::span<const ts::tensor_info> outputs() const noexcept override { return {&info_, 1}; }
  ts::result<void> produce(ts::region r, std::span<const ts::tile> tiles, ts::scratch&) const override {
    std::memset(tiles[0].data, ++times_, r.elements());
    return {};
  }

 private:
  ts::tensor_info info_{"w", ts::dtype::u8, {16}};
  mutable int times_ = 0;
};

/// Sets a variable of the environment for as long as it lives.
class variable {
 public:
  variable(std::string name, const std::string& value) : name_(std::move(name)) {
    if (const char* old = std::getenv(name_.c_str())) old_ = std::make_unique<std::string>(old);
    ::setenv(name_.c_str(), value.c_str(), 1);
  }
  ~variable() {
    if (old_) ::setenv(name_.c_str(), old_->c_str(), 1);
    else ::unsetenv(name_.c_str());
  }
  variable(const variable&) = delete;
  variable& operator=(const variable&) = delete;

 private:
  std::string name_;
  std::unique_ptr<std::string> old_;
};

/// A file with tensors of several types and odd sizes.
std::string make_source(const support::temp_folder& work) {
  faults::safetensors_parts parts;
  std::string bytes(7919 * 4, '\0');
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i % 4 == 3 ? 0x3F : i * 31);
  faults::add_tensor(parts, "w", "F32", {7919}, bytes);
  faults::add_tensor(parts, "h", "F16", {3, 5}, bytes.substr(0, 30));
  faults::add_tensor(parts, "b", "U8", {1}, "x");
  faults::add_tensor(parts, "l", "I64", {2}, bytes.substr(0, 16));
  faults::add_tensor(parts, "empty", "F32", {0}, "");
  parts.header["__metadata__"] = {{"zeta", "1"}, {"format", "pt"}, {"alpha", "2"}};
  faults::write_parts(work / "in.safetensors", parts);
  return work / "in.safetensors";
}

}  // namespace

TEST_CASE("OUT-04: pickles hold opcodes and globals of torch's strict reader and no others") {
  const support::temp_folder work;
  ts::catalog tensors;
  const ts::dtype types[] = {ts::dtype::f64, ts::dtype::f32, ts::dtype::f16, ts::dtype::bf16, ts::dtype::i64, ts::dtype::i32, ts::dtype::i16,
                             ts::dtype::i8, ts::dtype::u8, ts::dtype::boolean, ts::dtype::c64, ts::dtype::c128, ts::dtype::u16, ts::dtype::u32,
                             ts::dtype::u64, ts::dtype::f8_e4m3, ts::dtype::f8_e5m2, ts::dtype::f8_e4m3fnuz, ts::dtype::f8_e5m2fnuz};
  for (const ts::dtype type : types) REQUIRE(tensors.add("'\n\\\xF0\x9F\x98\x80 " + std::string(ts::name_of(type)), tensor(type, {2, 300}), "m"));
  for (int i = 0; i < 300; ++i) REQUIRE(tensors.add("tied " + std::to_string(i), tensors.entries()[0].tensor, "m"));
  const std::set<std::string> expected = {
      "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3", "torch.storage.UntypedStorage", "torch.DoubleStorage",
      "torch.FloatStorage", "torch.HalfStorage", "torch.BFloat16Storage", "torch.LongStorage", "torch.IntStorage", "torch.ShortStorage", "torch.CharStorage",
      "torch.ByteStorage", "torch.BoolStorage", "torch.ComplexFloatStorage", "torch.ComplexDoubleStorage", "torch.uint16", "torch.uint32", "torch.uint64",
      "torch.float8_e4m3fn", "torch.float8_e5m2", "torch.float8_e4m3fnuz", "torch.float8_e5m2fnuz"};
  for (const bool nested : {false, true}) {
    ts::torch_write_options options;
    options.force = true;
    if (nested) {
      options.nested = "state_dict";
      options.scalars = {{"global_step", std::int64_t{1} << 40}, {"epoch", 3}, {"lr", 0.1}, {"note", "text"}, {"none", nullptr}, {"flag", true}, {"minus", -5}};
    }
    REQUIRE(ts::write_torch(tensors, work / "m.pt", {}, options));
    CHECK(globals_of(first_entry(programs::read_text(work / "m.pt"))) == expected);
  }
}

TEST_CASE("OUT-05: outputs that cannot be are refused before anything is written") {
  const support::temp_folder work;
  faults::safetensors_parts nothing;
  nothing.header["__metadata__"] = {{"format", "pt"}};
  faults::write_parts(work / "none.safetensors", nothing);
  for (const std::string to : {"safetensors", "torch", "npz"}) {
    const auto run = programs::run("convert-weights", {work / "none.safetensors", work / "out", "--to", to});
    CHECK(run.status == faults::status_of("MIS"));
    CHECK(run.err.find("there are no tensors to write") != std::string::npos);
  }
  ts::catalog tensors;
  REQUIRE(tensors.add("a", tensor(ts::dtype::f32, {2}), "one.safetensors: 'a'"));
  const auto twice = tensors.add("a", tensor(ts::dtype::f32, {2}), "two.safetensors: 'a'");
  REQUIRE_FALSE(twice);
  CHECK(twice.error().message() == "MIS two.safetensors: 'a': two tensors get the name 'a' (expected unique names, found also from one.safetensors: 'a')");
  ts::limits few;
  few.safetensors_header_bytes = 40;
  const auto long_header = ts::plan_safetensors(tensors, {}, few);
  REQUIRE_FALSE(long_header);
  CHECK(long_header.error().code == ts::errc::limit);
  CHECK(long_header.error().what == "the header of the output would be too long for other readers");
  ts::job run;
  run.limits = few;
  const auto written = ts::write_safetensors(tensors, work / "out.safetensors", {}, run);
  REQUIRE_FALSE(written);
  CHECK(written.error().code == ts::errc::limit);
  CHECK(programs::listing(work.path()) == faults::strings{"none.safetensors"});
}

TEST_CASE("OUT-06: --verify-output reads the output again and compares it before it appears") {
  const support::temp_folder work;
  ts::catalog tensors;
  REQUIRE(tensors.add("w", {std::make_shared<fickle_recipe>(), 0}, "w"));
  const auto check = [&](const auto& written) {
    REQUIRE_FALSE(written);
    CHECK(written.error().code == ts::errc::internal);
    CHECK(written.error().what == "the output does not hold what was written into it");
    CHECK(fs::is_empty(work.path()));
  };
  check(ts::write_safetensors(tensors, work / "out.safetensors", {.verify = true}, {}));
  check(ts::write_npz(tensors, work / "out.npz", {}, {.verify = true}));
  ts::torch_write_options torch;
  torch.verify = true;
  check(ts::write_torch(tensors, work / "out.pt", {}, torch));

  const std::string in = make_source(work);
  for (const std::string name : {"a.safetensors", "a.pt", "a.npz"}) {
    CAPTURE(name);
    converted({in, work / name});
    converted({in, work / ("verified." + name), "--verify-output"});
    CHECK(programs::read_text(work / name) == programs::read_text(work / ("verified." + name)));
  }
}

TEST_CASE("OUT-07: no byte of the output comes from memory that was never written") {
  const support::temp_folder work;
  const std::string in = make_source(work);
  for (const std::string name : {"a.safetensors", "a.pt", "a.npz"})
    for (const std::string dtype : {"keep", "f16"}) {
      CAPTURE(name, dtype);
      std::string first;
      for (const char* fill : {"0", "165", "90"}) {  // what the C library puts into memory that it hands out
        const variable perturb("MALLOC_PERTURB_", fill);
        converted({in, work / name, "--dtype", dtype, "--force"});
        const std::string bytes = programs::read_text(work / name);
        if (first.empty()) first = bytes;
        CHECK(bytes == first);
      }
    }
  const std::string file = (converted({in, work / "b.safetensors"}), programs::read_text(work / "b.safetensors"));
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  const std::string header = file.substr(8, length);
  CHECK(header.find_first_not_of(' ', header.rfind('}') + 1) == std::string::npos);
  CHECK(length % 8 == 0);
}

TEST_CASE("OUT-08: the same bytes for any threads, tiles, locale, folder and time zone") {
  const support::temp_folder work;
  const std::string in = make_source(work);
  const fs::path home = fs::current_path();
  for (const std::string name : {"a.safetensors", "a.pt", "a.npz"}) {
    CAPTURE(name);
    converted({in, work / name, "--dtype", "f16", "--threads", "1"});
    const std::string expected = programs::read_text(work / name);
    const auto again = [&](const faults::strings& options) {
      CAPTURE(options);
      faults::strings arguments = {in, work / ("again." + name), "--dtype", "f16", "--force"};
      arguments.insert(arguments.end(), options.begin(), options.end());
      converted(arguments);
      CHECK(programs::read_text(work / ("again." + name)) == expected);
    };
    again({"--threads", "8"});
    again({"--tile", "4096", "--threads", "3"});
    {
      const variable locale("LC_ALL", "tr_TR.UTF-8"), zone("TZ", "Pacific/Kiritimati"), user("USER", "someone else"), epoch("SOURCE_DATE_EPOCH", "1");
      again({});
    }
    fs::create_directories(work / "elsewhere");
    fs::current_path(work / "elsewhere");
    converted({"../in.safetensors", "../relative." + name, "--dtype", "f16"});
    fs::current_path(home);
    CHECK(programs::read_text(work / ("relative." + name)) == expected);
  }
}

TEST_CASE("OUT-09, OUT-10: what was read is written, left out by a rule and listed, or an error") {
  const support::temp_folder work;
  faults::safetensors_parts parts;
  for (const std::string name : {"model.a.weight", "model.b.weight", "model_ema.decay", "model_ema.aweight", "alphas_cumprod", "betas", "extra.x",
                                 "extra.y"})
    faults::add_tensor(parts, name, "F32", {2}, "12345678");
  const std::string in = work / "in.safetensors";
  faults::write_parts(in, parts);
  const auto report = converted({in, work / "out.safetensors", "--drop", "extra.*", "--prune", "all"});
  const auto& counts = report["counts"];
  CAPTURE(report.dump());
  CHECK(counts["source"] == 8);
  CHECK(counts["written"].get<int>() + counts["dropped"].get<int>() + counts["pruned"].get<int>() + counts["ignored"].get<int>() == 8);
  CHECK(counts["dropped"] == 2);
  CHECK(report["dropped"].size() == 2);
  CHECK(counts["pruned"] == report["pruned"].size());
  CHECK(faults::tensors_of(work / "out.safetensors").size() == counts["written"].get<std::size_t>());
  // Every name of the source is in the output or in a list.
  std::set<std::string> seen;
  for (const auto& [name, bytes] : faults::tensors_of(work / "out.safetensors")) seen.insert(name);
  const std::string lists = report["dropped"].dump() + report["pruned"].dump() + report["ignored"].dump();
  for (const auto& [name, bytes] : faults::tensors_of(in)) {
    CAPTURE(name);
    CHECK((seen.count(name) == 1) != (lists.find('"' + name + '"') != std::string::npos));
  }
  CHECK(report["source"] == in);
  CHECK(report["output"] == work / "out.safetensors");
  CHECK(report["files"].size() == 1);
  CHECK(report["files"][0]["bytes"] == fs::file_size(work / "out.safetensors"));

  refused("convert-weights", work.path(), {in, work / "none.safetensors", "--drop", "nothing.*"}, "USE",
          in + ": the pattern 'nothing.*' drops nothing (expected a pattern that matches a tensor); list the names with inspect and correct it");
}
