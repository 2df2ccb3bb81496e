// SPDX-License-Identifier: MIT
//
// Odd files that are valid: they must be read, and read right. What refuses too much is as wrong as what refuses too little.
#include <chrono>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "faults/convert.hpp"
#include "format/safetensors_build.hpp"
#include "format/torch_bytes.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/format/checkpoint/open.hpp"
#include "tensorsmith/format/safetensors/write.hpp"
#include "tensorsmith/format/torch/write.hpp"
#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/executor.hpp"

namespace ts = tensorsmith;
namespace fs = std::filesystem;
using namespace std::string_literals;
using support::entry;
using support::u64_bytes;

namespace {

void write_file(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

ts::checkpoint_file read(const std::string& path, const ts::limits& bounds = {}) {
  ts::job run;
  run.limits = bounds;
  auto file = ts::read_checkpoint_file(path, run);
  INFO((file ? "" : file.error().message()));
  REQUIRE(file);
  return std::move(file).value();
}

std::string refusal(const std::string& path, const ts::limits& bounds = {}) {
  ts::job run;
  run.limits = bounds;
  const auto file = ts::read_checkpoint_file(path, run);
  return file ? "accepted" : file.error().message();
}

std::string bytes_of(const ts::checkpoint_file& file, const std::string& name) {
  const ts::catalog_entry* e = file.tensors.find(name);
  REQUIRE(e);
  const auto bytes = ts::materialize(e->tensor, {});
  INFO((bytes ? "" : bytes.error().message()));
  REQUIRE(bytes);
  return {reinterpret_cast<const char*>(bytes->data()), bytes->size()};
}

}  // namespace

TEST_CASE("VAL-01, VAL-02: white space and odd lengths in the header are read and never written") {
  const support::temp_folder folder;
  const std::string in = folder / "in.safetensors", out = folder / "out.safetensors";
  const std::string data = "abcdefgh12";
  for (const std::string before : {"", " ", "\n", "\r\n\t "})
    for (const std::string after : {"", " ", "\r\n\t ", "  "}) {
      const std::string header = before + "{" + entry("w", "F32", "[2]", "[0,8]") + "," + entry("h", "F16", "[1]", "[8,10]") + "}" + after;
      write_file(in, u64_bytes(header.size()) + header + data);
      const ts::checkpoint_file file = read(in);
      CHECK(bytes_of(file, "w") == "abcdefgh");
      CHECK(bytes_of(file, "h") == "12");
      const auto wide = ts::cast(file.tensors.find("w")->tensor, ts::dtype::f64);  // elements are not aligned in memory either
      REQUIRE(wide);
      CHECK(ts::materialize(*wide, {}));
      REQUIRE(ts::write_safetensors(file.tensors, out, {.force = true}, {}));
      const std::string written = programs::read_text(out);
      CHECK(written[8] == '{');
      CHECK(static_cast<unsigned char>(written[0]) % 8 == 0);
      CHECK(faults::tensors_of(out) == std::map<std::string, std::string>{{"w", "F32[2]abcdefgh"}, {"h", "F16[1]12"}});
    }
}

TEST_CASE("VAL-03: scalars and tensors without elements go through every container") {
  const support::temp_folder folder;
  faults::safetensors_parts parts;
  faults::add_tensor(parts, "none", "F32", {0}, "");
  faults::add_tensor(parts, "none.too", "F16", {2, 0}, "");
  faults::add_tensor(parts, "scalar", "I64", {}, "12345678");
  faults::add_tensor(parts, "between", "U8", {0, 0, 7}, "");
  faults::add_tensor(parts, "w", "BF16", {1, 2}, "abcd");
  faults::add_tensor(parts, "last", "BOOL", {3, 0}, "");
  faults::add_tensor(parts, "very.last", "F64", {0}, "");
  const std::string in = folder / "in.safetensors", torch = folder / "t.pt", out = folder / "out.safetensors";
  faults::write_parts(in, parts);
  const ts::checkpoint_file first = read(in);
  REQUIRE(first.tensors.size() == 7);
  REQUIRE(ts::write_torch(first.tensors, torch, {}));
  const ts::checkpoint_file second = read(torch);
  REQUIRE(ts::write_safetensors(second.tensors, out, {}, {}));
  CHECK(faults::tensors_of(out) == faults::tensors_of(in));
}

TEST_CASE("VAL-04: 1,290,000 tensors in a header of 132 MB") {
  const support::temp_folder folder;
  const std::string path = folder / "many.safetensors";
  constexpr std::size_t count = 1'290'000;
  {
    std::string header = "{";
    header.reserve(140'000'000);
    for (std::size_t i = 0; i < count; ++i) {
      std::string number = std::to_string(i);
      number.insert(0, 7 - number.size(), '0');
      header += (i ? "," : "") + entry("model.layers.experts.up_projection." + number, "U8", "[1]",
                                       "[" + std::to_string(i) + "," + std::to_string(i + 1) + "]");
    }
    header += "}";
    header.resize(std::max<std::size_t>(header.size(), 132'000'000), ' ');
    std::ofstream(path, std::ios::binary) << u64_bytes(header.size()) << header << std::string(count, 'x');
  }
  const std::uint64_t header_bytes = fs::file_size(path) - 8 - count;
  CHECK(refusal(path) == "LIM " + path + ": byte offset 0: the header is too long (expected at most 100000000 bytes, found " +
                             std::to_string(header_bytes) + "); raise limits::safetensors_header_bytes (--max-header) if you trust it");
  ts::limits more;
  more.safetensors_header_bytes = 200'000'000;
  const auto before = ts::os::memory_in_use();
  const auto start = std::chrono::steady_clock::now();
  CHECK(read(path, more).tensors.size() == count);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  WARN("opened in " << seconds << " s");
  CHECK(seconds < 50);  // 5 s where nothing else runs and the code is optimized
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  CHECK(ts::os::memory_in_use().peak_resident <= std::max(before.peak_resident, before.resident + (64u << 20) + 8 * header_bytes));
#endif
}

TEST_CASE("VAL-05: an archive without checksums is read with --no-crc") {
  const support::temp_folder folder;
  auto entries = torch_bytes::checkpoint_entries(torch_bytes::one({}));
  for (torch_bytes::entry& e : entries) e.crc32 = 0;
  const std::string path = folder / "m.pt";
  write_file(path, torch_bytes::zip(entries));
  const std::string message = refusal(path);
  CHECK(message.starts_with("ITG " + path + ": zip entry 'archive/"));
  CHECK(message.find("--no-crc") != std::string::npos);
  ts::limits unchecked;
  unchecked.check_crc = false;
  CHECK(bytes_of(read(path, unchecked), "w") == torch_bytes::floats(6));

  const std::string out = folder / "out.safetensors";
  faults::refused("convert-weights", folder.path(), {path, out}, "ITG", message.substr(4));
  faults::converted({path, out, "--no-crc"});
  CHECK(faults::tensors_of(out) == std::map<std::string, std::string>{{"w", "F32[2,3]" + torch_bytes::floats(6)}});
}

TEST_CASE("VAL-06: a checkpoint of a training run: weights are read, the rest is listed by name and class") {
  using namespace torch_bytes;
  const auto pair = [](const std::string& key, const std::string& value) { return text(key) + value + "s"; };
  const std::string number = global("numpy.core.multiarray", "scalar") + "(" + global("numpy", "dtype") + "(" + text("i8") +
                             "\x89\x88tR(K\x03"_s + text("<") + "NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"_s +
                             global("_codecs", "encode") + text("\x07\0\0\0\0\0\0\0"_s) + text("latin1") + "\x86R" + "tR";
  const std::string state = global("collections", "OrderedDict") + ")R" + pair("w", value({})) + "}" + text("_metadata") +
                            global("collections", "OrderedDict") + ")R" + pair("", "}" + pair("version", integer(1))) + "sb";
  const support::temp_folder folder;
  const std::string path = folder / "last.ckpt";
  write_file(path, checkpoint(program(
                       "}" + pair("epoch", integer(3)) + pair("global_step", number) + pair("state_dict", state) + text("callbacks") + "}" +
                       global("lightning.callbacks", "ModelCheckpoint") + "}" + pair("best", "N") + "ss" +
                       pair("hyper_parameters", global("omegaconf.dictconfig", "DictConfig") + ")\x81}" + pair("a", "N") + "b"))));
  const ts::checkpoint_file file = read(path);
  CHECK(bytes_of(file, "w") == floats(6));
  CHECK(file.tensors.size() == 1);
  CHECK(file.nested == "state_dict");
  CHECK(file.global_step == 7);
  CHECK(file.ignored == std::vector<std::string>{"callbacks: a dict, classes lightning.callbacks.ModelCheckpoint",
                                                 "hyper_parameters: an object of 'omegaconf.dictconfig.DictConfig', classes "
                                                 "omegaconf.dictconfig.DictConfig"});
}

TEST_CASE("LEG-01: the legacy stream in pickles of protocol 2 to 5") {
  using namespace torch_bytes;
  const auto pair = [](const std::string& key, const std::string& value) { return text(key) + value + "s"; };
  const std::string number = "\x8A\x0A\x6C\xFC\x9C\x46\xF9\x20\x6A\xA8\x50\x19\x2E"_s;
  const std::string system = program("}" + pair("protocol_version", integer(1001)) + pair("little_endian", "\x88") + text("type_sizes") + "}" +
                                     pair("short", integer(2)) + pair("int", integer(4)) + pair("long", integer(4)) + "s");
  std::string object = one({});
  const std::string persistent = integer(6) + "tQ";  // six elements and a view, which is None
  REQUIRE(object.find(persistent) != std::string::npos);
  object.replace(object.find(persistent), persistent.size(), integer(6) + "NtQ");
  const support::temp_folder folder;
  const std::string path = folder / "m.pt";
  for (int protocol = 2; protocol <= 5; ++protocol) {
    const std::string head = "\x80" + le(static_cast<std::uint64_t>(protocol), 1) + (protocol >= 4 ? "\x95" + le(number.size(), 8) : "");
    write_file(path, head + number + program(integer(1001)) + system + object + program("]" + text("0") + "a") + le(6, 8) + floats(6));
    CHECK(bytes_of(read(path), "w") == floats(6));
  }
}

TEST_CASE("VAL-07: views into one storage become what torch makes of them") {
  using namespace torch_bytes;
  const auto pair = [](const std::string& key, const tensor& t) { return text(key) + value(t) + "s"; };
  const support::temp_folder folder;
  const std::string path = folder / "m.pt", out = folder / "out.safetensors";
  write_file(path, checkpoint(program("}" + pair("whole", {}) + pair("turned", {.size = {3, 2}, .stride = {1, 3}}) +
                                      pair("second", {.offset = 3, .size = {3}, .stride = {1}}) +
                                      pair("steps", {.offset = 1, .size = {2, 2}, .stride = {3, 1}}) +
                                      pair("every", {.size = {3}, .stride = {2}}) + pair("spread", {.offset = 5, .size = {2, 2}, .stride = {0, 0}}) +
                                      pair("windows", {.size = {3, 3}, .stride = {1, 1}}) + pair("one", {.offset = 4, .size = {}, .stride = {}}))));
  const ts::checkpoint_file file = read(path);
  REQUIRE(ts::write_safetensors(file.tensors, out, {}, {}));
  const auto floats_of = [](const std::vector<float>& values) {
    std::string bytes(4 * values.size(), '\0');
    std::memcpy(bytes.data(), values.data(), bytes.size());
    return bytes;
  };
  CHECK(faults::tensors_of(out) == std::map<std::string, std::string>{{"whole", "F32[2,3]" + floats_of({0, 1, 2, 3, 4, 5})},
                                                                      {"turned", "F32[3,2]" + floats_of({0, 3, 1, 4, 2, 5})},
                                                                      {"second", "F32[3]" + floats_of({3, 4, 5})},
                                                                      {"steps", "F32[2,2]" + floats_of({1, 2, 4, 5})},
                                                                      {"every", "F32[3]" + floats_of({0, 2, 4})},
                                                                      {"spread", "F32[2,2]" + floats_of({5, 5, 5, 5})},
                                                                      {"windows", "F32[3,3]" + floats_of({0, 1, 2, 1, 2, 3, 2, 3, 4})},
                                                                      {"one", "F32[]" + floats_of({4})}});
}

TEST_CASE("VAL-08: the links of a hub's cache are followed") {
  const support::temp_folder folder;
  const std::string repository = folder / "models--someone--model", snapshot = repository + "/snapshots/0123abc";
  fs::create_directories(repository + "/blobs");
  fs::create_directories(snapshot);
  faults::safetensors_parts parts;
  faults::add_tensor(parts, "w", "F32", {2}, "abcdefgh");
  faults::write_parts(repository + "/blobs/aaaa", parts);
  write_file(repository + "/blobs/bbbb", R"({"weight_map":{"w":"model-00001-of-00001.safetensors"}})");
  fs::create_symlink("../../blobs/aaaa", snapshot + "/model-00001-of-00001.safetensors");
  fs::create_symlink("../../blobs/bbbb", snapshot + "/model.safetensors.index.json");
  const std::map<std::string, std::string> expected{{"w", "F32[2]abcdefgh"}};
  for (const std::string& source : {snapshot + "/model.safetensors.index.json", snapshot + "/model-00001-of-00001.safetensors", snapshot}) {
    CAPTURE(source);
    faults::converted({source, folder / "out.safetensors", "--force"});
    CHECK(faults::tensors_of(folder / "out.safetensors") == expected);
  }
  // A link to anywhere else is another matter.
  fs::copy_file(repository + "/blobs/aaaa", folder / "elsewhere");
  fs::remove(snapshot + "/model-00001-of-00001.safetensors");
  fs::create_symlink(folder / "elsewhere", snapshot + "/model-00001-of-00001.safetensors");
  CHECK(refusal(snapshot + "/model.safetensors.index.json").starts_with("PTH "));
}

TEST_CASE("VAL-10: ZIP64, data descriptors, padding fields and names in UTF-8") {
  const support::temp_folder folder;
  const std::string path = folder / "m.pt";
  for (const bool zip64 : {false, true})
    for (const bool descriptor : {false, true}) {
      auto entries = torch_bytes::checkpoint_entries(torch_bytes::one({}));
      for (torch_bytes::entry& e : entries) {
        e.descriptor = descriptor;
        e.flags = 0x800;
        e.local_extra = "FB" + torch_bytes::le(11, 2) + std::string(11, 'Z');
      }
      write_file(path, torch_bytes::zip(entries, {.zip64 = zip64}));
      CHECK(bytes_of(read(path), "w") == torch_bytes::floats(6));
    }
}

TEST_CASE("VAL-11: names of files as people have them") {
  const support::temp_folder folder;
  faults::safetensors_parts parts;
  faults::add_tensor(parts, "w", "F32", {2}, "abcdefgh");
  const std::vector<std::string> names = {"with space", "new\nline",  "-dash", "--json", "caf\xE9 (latin 1)", "😀",
                                          "'quoted'",   "$(touch x)", "a\\b",  "*",      std::string(242, 'n')};  // 255 with extension and digit
  for (const std::string& name : names) {
    CAPTURE(name);
    const fs::path in = folder.path() / (name + "1.safetensors"), out = folder.path() / (name + "2.safetensors");
    faults::write_parts(in, parts);
    const programs::outcome run = programs::run("convert-weights", {in.string(), out.string(), "--quiet"});
    INFO(run.err);
    CHECK(run.status == 0);
    CHECK(run.out.empty());
    CHECK(faults::tensors_of(out) == faults::tensors_of(in));
    fs::remove(in);
    fs::remove(out);
  }
  CHECK(fs::is_empty(folder.path()));
}

TEST_CASE("VAL-12: NaN and infinity keep their bits") {
  const auto words = [](const auto& values) {
    std::string out(values.size() * sizeof values[0], '\0');
    std::memcpy(out.data(), values.data(), out.size());
    return out;
  };
  // Quiet and signalling, both signs, payloads at both ends; infinities; the smallest numbers; zeros of both signs.
  const std::vector<std::uint16_t> f16 = {0x7E00, 0x7C01, 0xFE00, 0xFC01, 0x7FFF, 0x7C00, 0xFC00, 0x0001, 0x8000, 0x0000};
  const std::vector<std::uint16_t> bf16 = {0x7FC0, 0x7F81, 0xFFC0, 0xFF81, 0x7FFF, 0x7F80, 0xFF80, 0x0001, 0x8000, 0x0000};
  const std::vector<std::uint32_t> f32 = {0x7FC00000, 0x7F800001, 0xFFC00000, 0xFFA5A5A5, 0x7FFFFFFF, 0x7F800000, 0xFF800000, 1, 0x80000000, 0};
  const std::vector<std::uint64_t> f64 = {0x7FF8000000000000, 0x7FF0000000000001, 0xFFF8000000000000, 0xFFF7A5A5A5A5A5A5, 0x7FFFFFFFFFFFFFFF,
                                          0x7FF0000000000000, 0xFFF0000000000000, 1, 0x8000000000000000, 0};
  const support::temp_folder folder;
  faults::safetensors_parts parts;
  faults::add_tensor(parts, "f64", "F64", {10}, words(f64));
  faults::add_tensor(parts, "f32", "F32", {10}, words(f32));
  faults::add_tensor(parts, "f16", "F16", {10}, words(f16));
  faults::add_tensor(parts, "bf16", "BF16", {10}, words(bf16));
  const std::string in = folder / "in.safetensors", torch = folder / "m.pt", out = folder / "out.safetensors";
  faults::write_parts(in, parts);
  faults::converted({in, torch});
  faults::converted({torch, out});
  CHECK(faults::tensors_of(out) == faults::tensors_of(in));
}
