// SPDX-License-Identifier: MIT
//
// Safetensors files: opening and listing a header, reading everything, copying, casting and sharding from file to file.
//
// `of_bare` is the speed as a ratio to a baseline that alternates with the work in this process: nlohmann/json's own parser over the
// same header (open), memcpy (read_all), a loop of pread and pwrite on as many threads (copy, cast, shard). Files lie in the folder
// that TMPDIR names, else in /tmp; times from file to file do not wait for the disk.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "support/measure.hpp"
#include "tensorsmith/format/safetensors/read.hpp"
#include "tensorsmith/format/safetensors/write.hpp"
#include "tensorsmith/format/safetensors/write_sharded.hpp"
#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;

namespace {

using measure::fail;

std::string u64_bytes(std::uint64_t value) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(static_cast<unsigned char>(value >> (8 * i)));
  return out;
}

/// A file of `tensors` tensors of four bytes with names as long as those of a UNet.
std::vector<std::byte> many_tensors(std::size_t tensors) {
  std::string json = "{";
  for (std::size_t i = 0; i < tensors; ++i)
    json += (i ? "," : "") + ("\"down_blocks.1.attentions.0.transformer_blocks." + std::to_string(i)) + ".attn1.to_q.weight\":{\"dtype\":\"F32\",\"shape\":[1,1],\"data_offsets\":[" +
            std::to_string(4 * i) + "," + std::to_string(4 * i + 4) + "]}";
  json += "}";
  std::string text = u64_bytes(json.size()) + json;
  text.append(4 * tensors, '\0');
  std::vector<std::byte> bytes(text.size());
  std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

void open(benchmark::State& state) {
  const auto tensors = static_cast<std::size_t>(state.range(0));
  const auto bytes = many_tensors(tensors);
  const auto file = std::make_shared<ts::memory_source>("memory", bytes);
  ts::limits bounds;
  bounds.safetensors_header_bytes = bytes.size();
  const char* const text = reinterpret_cast<const char*>(bytes.data()) + 8;
  const std::size_t length = bytes.size() - 8 - 4 * tensors;
  measure::alternate(
      state,
      [&] {
        auto header = ts::read_safetensors_header(*file, bounds);
        auto read = header ? ts::safetensors_catalog(file, std::move(*header)) : ts::result<ts::catalog>(std::move(header).error());
        if (!read || read->size() != tensors || !read->find("down_blocks.1.attentions.0.transformer_blocks.7.attn1.to_q.weight"))
          fail("the header was not read");
        std::uint64_t sum = 0;  // list
        for (const ts::catalog_entry& e : read->entries()) sum += e.tensor.info().bytes();
        if (sum != 4 * tensors) fail("wrong sizes");
      },
      [&] {
        if (!nlohmann::json::accept(text, text + length)) fail("the header is no JSON");
      });
  state.counters["ns_a_tensor"] = benchmark::Counter(static_cast<double>(tensors) * static_cast<double>(state.iterations()) * 1e-9,
                                                     benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

/// A model of 512 MiB in f32 and where it lies.
class model {
 public:
  model() : folder_(std::filesystem::temp_directory_path() / ("tensorsmith-bench-" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(folder_);
    ts::catalog tensors;
    for (int i = 0; i < 32; ++i) {
      std::vector<std::byte> bytes(16u << 20);
      for (std::size_t k = 0; k < bytes.size() / 4; ++k)
        ts::detail::store_as(bytes.data() + 4 * k, static_cast<float>(k % 4099) * 0.37F - static_cast<float>(i));
      const std::string name = "t" + std::to_string(i);
      if (!tensors.add(name, ts::in_memory({name, ts::dtype::f32, {2048, 2048}}, std::move(bytes)), "bench")) fail("two names");
    }
    if (!ts::write_safetensors(tensors, path("in"), {}, ts::job{})) fail("the model could not be written");
    const auto file = ts::open_file(path("in"));
    auto header = ts::read_safetensors_header(**file);
    size = (*file)->size();
    weights = std::move(ts::safetensors_catalog(*file, std::move(*header))).value();
  }
  ~model() { std::filesystem::remove_all(folder_); }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  void remove(const std::string& name) const { std::filesystem::remove_all(folder_ / name); }

  ts::catalog weights;
  std::uint64_t size = 0;

 private:
  std::filesystem::path folder_;
};

model& shared() {
  static model m;
  return m;
}

ts::job job_of(const benchmark::State& state) {
  ts::job run;
  run.threads = static_cast<unsigned>(state.range(0));
  return run;
}

void read_all(benchmark::State& state) {
  const std::uint64_t bytes = shared().weights.bytes();
  std::vector<std::byte> out(bytes), other(bytes);
  ts::memory_sink sink(out);
  std::vector<ts::placement> work;
  std::uint64_t at = 0;
  for (const ts::catalog_entry& e : shared().weights.entries()) {
    work.push_back({e.tensor.source, {{&sink, at}}, e.name});
    at += e.tensor.info().bytes();
  }
  const ts::job run = job_of(state);
  if (!ts::execute(work, run)) fail("the model could not be read");
  if (ts::detail::load_as<float>(out.data() + (16u << 20) + 4) != 0.37F - 1.0F) fail("wrong element");
  measure::alternate(
      state, [&] { if (!ts::execute(work, run)) fail("the model could not be read"); }, [&] { std::memcpy(other.data(), out.data(), out.size()); });
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes) * static_cast<std::int64_t>(state.iterations()));
}

/// pread and pwrite of 256 KiB at a time, each thread its part of the file.
void bare_copy(unsigned threads) {
  const std::string from = shared().path("in"), to = shared().path("bare");
  const int in = ::open(from.c_str(), O_RDONLY | O_CLOEXEC), out = ::open(to.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (in < 0 || out < 0 || ::ftruncate(out, static_cast<off_t>(shared().size)) != 0) fail("the baseline cannot open its files");
  std::vector<std::thread> pool;
  for (unsigned t = 0; t < threads; ++t)
    pool.emplace_back([=] {
      std::vector<char> buffer(256u << 10);
      for (std::uint64_t at = t * buffer.size(); at < shared().size; at += threads * buffer.size()) {
        const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), shared().size - at));
        if (::pread(in, buffer.data(), n, static_cast<off_t>(at)) != static_cast<ssize_t>(n) ||
            ::pwrite(out, buffer.data(), n, static_cast<off_t>(at)) != static_cast<ssize_t>(n))
          fail("the baseline cannot copy");
      }
    });
  for (std::thread& t : pool) t.join();
  ::close(in), ::close(out);
  shared().remove("bare");
}

enum class work { copy, half, shards };

void file_to_file(benchmark::State& state, work kind) {
  const ts::job run = job_of(state);
  ts::catalog weights = shared().weights;
  if (kind == work::half)
    for (const ts::catalog_entry& e : shared().weights.entries()) weights.replace(e.name, ts::cast(e.tensor, ts::dtype::f16).value());
  const auto write = [&] {
    const bool fine = kind == work::shards
                          ? bool(ts::write_safetensors_sharded(weights, shared().path("out"), {.max_shard_bytes = 100'000'000}, run))
                          : bool(ts::write_safetensors(weights, shared().path("out"), {}, run));
    if (!fine) fail("the model could not be written");
  };
  shared().remove("out");
  write();
  if (kind != work::shards) {
    const auto file = ts::open_file(shared().path("out"));
    const auto header = ts::read_safetensors_header(**file);
    if (!header || (*file)->size() < weights.bytes()) fail("the model was written wrong");
  } else if (!std::filesystem::exists(shared().path("out/model-00007-of-00007.safetensors"))) {
    fail("the shards are not there");
  }
  shared().remove("out");
  measure::alternate(
      state, [&] { write(), shared().remove("out"); }, [&] { bare_copy(run.threads); });
  state.SetBytesProcessed(static_cast<std::int64_t>(shared().size) * static_cast<std::int64_t>(state.iterations()));
}

}  // namespace

BENCHMARK(open)->Arg(1'000)->Arg(100'000)->Arg(1'000'000)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(read_all)->Arg(1)->Arg(2)->UseManualTime();
BENCHMARK_CAPTURE(file_to_file, copy, work::copy)->Arg(1)->Arg(2)->UseManualTime();
BENCHMARK_CAPTURE(file_to_file, f32_to_f16, work::half)->Arg(1)->Arg(2)->UseManualTime();
BENCHMARK_CAPTURE(file_to_file, shards, work::shards)->Arg(1)->Arg(2)->UseManualTime();
BENCHMARK_MAIN();
