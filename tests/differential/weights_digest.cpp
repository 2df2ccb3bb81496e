// SPDX-License-Identifier: MIT
//
// weights-digest: prints what the library sees in files of weights, or writes random files and prints what it put into them.
//
//   weights-digest read                             paths on standard input, one a line
//   weights-digest write FORMAT FOLDER SEED COUNT   FORMAT: safetensors, torch or npz; files 0, 1, … in FOLDER
//
// Lines, tab-separated: F path; M key value (metadata, hexadecimal); T name (hexadecimal) type shape CRC-32 of the elements in
// row-major order; E message. compare.py compares them with what the reference libraries see.
#include <zlib.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/format/checkpoint/read.hpp"
#include "tensorsmith/format/numpy/write.hpp"
#include "tensorsmith/format/safetensors/write.hpp"
#include "tensorsmith/format/torch/write.hpp"
#include "tensorsmith/tensor/executor.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace {

namespace ts = tensorsmith;

std::string hex(std::string_view text) {
  std::string out;
  for (const char c : text) {
    out += "0123456789abcdef"[(static_cast<unsigned char>(c) >> 4) & 0xF];
    out += "0123456789abcdef"[static_cast<unsigned char>(c) & 0xF];
  }
  return out;
}

void print_tensor(std::string_view name, ts::dtype type, const ts::shape_type& shape, std::span<const std::byte> bytes) {
  std::string line = "T\t" + hex(name) + '\t' + std::string(ts::name_of(type)) + '\t';
  for (std::size_t i = 0; i < shape.size(); ++i) line += (i ? "," : "") + std::to_string(shape[i]);
  const auto crc = ::crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size());
  std::printf("%s\t%08lx\n", line.c_str(), static_cast<unsigned long>(crc));
}

/// One thread a process: the files are small and several processes run.
ts::job quiet_job() {
  ts::job run;
  run.threads = 1;
  return run;
}

void read_file(const std::string& path) {
  std::printf("F\t%s\n", path.c_str());
  ts::job run = quiet_job();
  const auto file = ts::read_checkpoint_file(path, run);
  if (!file) return void(std::printf("E\t%s\n", file.error().message().c_str()));
  for (const auto& [key, value] : file->metadata) std::printf("M\t%s\t%s\n", hex(key).c_str(), hex(value).c_str());
  for (const ts::catalog_entry& e : file->tensors.entries()) {
    const auto bytes = ts::materialize(e.tensor, run);
    if (!bytes) std::printf("E\t%s\n", bytes.error().message().c_str());
    else print_tensor(e.name, e.tensor.type(), e.tensor.shape(), *bytes);
  }
}

/// splitmix64: the same files for a seed on every machine.
class random_numbers {
 public:
  explicit random_numbers(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }
  std::size_t below(std::size_t bound) { return static_cast<std::size_t>(next() % bound); }
  bool one_in(std::size_t n) { return below(n) == 0; }

 private:
  std::uint64_t state_;
};

enum class container { safetensors, torch, npz };

std::string random_name(random_numbers& random, container format, std::size_t number) {
  static constexpr std::string_view plain[] = {"a", "weight", ".", "_", "bias", "0", "17", "-", " ", "layers", "é", "ß", "日本", "Ω", "ы", "😀", "e\u0301"};
  static constexpr std::string_view odd[] = {"\"", "\\", "\n", "\t", "'", "{", "}", "/", "\x7F", "\u2028", "\u202E", ":", "\x01", "%s", "</script>"};
  std::string name;
  for (std::size_t parts = random.below(6); parts > 0; --parts) {
    if (format != container::npz && random.one_in(4)) name += odd[random.below(std::size(odd))];  // entries of archives are file names
    else name += plain[random.below(std::size(plain))];
  }
  if (format == container::npz || !random.one_in(20)) name += "." + std::to_string(number);  // unique, as the rest need not be
  return name;
}

constexpr ts::dtype torch_types[] = {ts::dtype::f64, ts::dtype::f32, ts::dtype::f16, ts::dtype::bf16, ts::dtype::i64, ts::dtype::i32,
                                     ts::dtype::i16, ts::dtype::i8,  ts::dtype::u8,  ts::dtype::boolean, ts::dtype::f8_e4m3, ts::dtype::f8_e5m2,
                                     ts::dtype::u16, ts::dtype::u32, ts::dtype::u64, ts::dtype::c64, ts::dtype::f8_e4m3fnuz, ts::dtype::f8_e5m2fnuz,
                                     ts::dtype::c128};
constexpr ts::dtype numpy_types[] = {ts::dtype::f64, ts::dtype::f32, ts::dtype::f16, ts::dtype::i64, ts::dtype::i32, ts::dtype::i16, ts::dtype::i8,
                                     ts::dtype::u8,  ts::dtype::u16, ts::dtype::u32, ts::dtype::u64, ts::dtype::boolean};

ts::dtype random_type(random_numbers& random, container format, bool every_type) {
  if (format == container::npz) return numpy_types[random.below(std::size(numpy_types))];
  if (format == container::torch) return torch_types[random.below(std::size(torch_types))];
  // What torch's side of the library has no name for comes in files of their own, which the reader without torch judges.
  if (every_type) return ts::detail::safetensors_dtypes[random.below(std::size(ts::detail::safetensors_dtypes))].type;
  return torch_types[random.below(std::size(torch_types) - 1)];
}

ts::shape_type random_shape(random_numbers& random, ts::dtype type) {
  if (random.one_in(40)) return {16 * (1 + random.below(1000))};
  ts::shape_type shape(random.below(7));
  for (std::size_t& extent : shape) extent = random.one_in(12) ? 0 : 1 + random.below(4);
  if (ts::bits_of(type) < 8) shape.push_back(8);  // whole bytes
  return shape;
}

std::vector<std::byte> random_bytes(random_numbers& random, ts::dtype type, std::size_t count) {
  std::vector<std::byte> bytes(count);
  for (std::byte& b : bytes) b = static_cast<std::byte>(type == ts::dtype::boolean ? random.next() & 1 : random.next());
  return bytes;
}

ts::result<void> write_file(container format, const std::string& path, std::uint64_t seed) {
  random_numbers random(seed);
  ts::catalog tensors;
  const bool every_type = format == container::safetensors && random.one_in(3);
  const std::size_t count = 1 + random.below(6);
  for (std::size_t i = 0; i < count; ++i) {
    const std::string name = random_name(random, format, i);
    if (tensors.contains(name)) continue;
    if (i > 0 && random.one_in(6)) {  // two names for one tensor
      TENSORSMITH_CHECK(tensors.add(name, tensors.entries()[random.below(tensors.size())].tensor, name));
      continue;
    }
    const ts::dtype type = random_type(random, format, every_type);
    ts::tensor_info info{name, type, random_shape(random, type)};
    auto bytes = random_bytes(random, type, info.bytes());
    TENSORSMITH_CHECK(tensors.add(name, ts::in_memory(std::move(info), std::move(bytes)), name));
  }
  ts::job run = quiet_job();
  std::printf("F\t%s\n", path.c_str());
  ts::safetensors_metadata metadata;
  if (format == container::safetensors && random.one_in(3))
    for (std::size_t n = random.below(4); n > 0; --n)
      metadata.emplace_back("key " + std::to_string(n) + random_name(random, format, n), random_name(random, format, n));
  for (const auto& [key, value] : metadata) std::printf("M\t%s\t%s\n", hex(key).c_str(), hex(value).c_str());
  for (const ts::catalog_entry& e : tensors.entries()) {
    TENSORSMITH_TRY(const auto bytes, ts::materialize(e.tensor, run));
    print_tensor(e.name, e.tensor.type(), e.tensor.shape(), bytes);
  }
  switch (format) {
    case container::safetensors: TENSORSMITH_CHECK(ts::write_safetensors(tensors, path, {.metadata = metadata}, run)); break;
    case container::torch: {
      ts::torch_write_options options;
      if (random.one_in(3)) options.nested = "state_dict", options.scalars = {{"global_step", std::int64_t(random.below(100000))}, {"note", "made up"}};
      TENSORSMITH_CHECK(ts::write_torch(tensors, path, run, options));
      break;
    }
    case container::npz: TENSORSMITH_CHECK(ts::write_npz(tensors, path, run)); break;
  }
  return {};
}

int write_files(const std::string& name, const std::string& folder, std::uint64_t seed, std::uint64_t count) {
  const std::pair<std::string_view, container> formats[] = {
      {"safetensors", container::safetensors}, {"torch", container::torch}, {"npz", container::npz}};
  for (const auto& [known, format] : formats) {
    if (known != name) continue;
    for (std::uint64_t i = 0; i < count; ++i)
      if (const auto done = write_file(format, folder + '/' + std::to_string(i), seed * 1'000'003 + i); !done)
        std::printf("E\t%s\n", done.error().message().c_str());
    return 0;
  }
  std::fprintf(stderr, "weights-digest: no format %s\n", name.c_str());
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "write" && argc == 6) return write_files(argv[2], argv[3], std::strtoull(argv[4], nullptr, 10), std::strtoull(argv[5], nullptr, 10));
  if (mode != "read" || argc != 2) {
    std::fputs("usage: weights-digest read | write FORMAT FOLDER SEED COUNT\n", stderr);
    return 2;
  }
  std::string line;
  for (int c; (c = std::getchar()) != EOF;) {
    if (c != '\n') line += static_cast<char>(c);
    else read_file(std::exchange(line, {}));
  }
  return 0;
}
