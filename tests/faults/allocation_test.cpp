// SPDX-License-Identifier: MIT
//
// Memory runs out at every allocation, one after the other: the library answers with a failure, or std::bad_alloc leaves the call;
// nothing terminates, nothing leaks, no descriptor stays open, and the output is the old one or the complete new one.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <string>

#include "faults/support/conversions.hpp"
#include "faults/support/sweep.hpp"
#include "support/catch.hpp"
#include "tensorsmith/format/numpy/npz.hpp"
#include "tensorsmith/format/numpy/write.hpp"
#include "tensorsmith/format/safetensors/read.hpp"
#include "tensorsmith/format/safetensors/sharded.hpp"
#include "tensorsmith/format/safetensors/write.hpp"
#include "tensorsmith/format/safetensors/write_sharded.hpp"
#include "tensorsmith/format/torch/read.hpp"
#include "tensorsmith/format/torch/write.hpp"
#include "tensorsmith/tensor/cast.hpp"

namespace {

std::atomic<std::int64_t> live_allocations{0};
std::atomic<std::int64_t> until_failure{-1};  // -1: never
std::atomic<bool> failed_once{false};

void* allocate(std::size_t bytes, std::size_t alignment) noexcept {
  if (until_failure.load(std::memory_order_relaxed) >= 0 && until_failure.fetch_sub(1) == 0) {
    failed_once = true;
    return nullptr;
  }
  const std::size_t size = bytes ? bytes : 1;
  void* memory = alignment ? std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment) : std::malloc(size);
  if (memory) ++live_allocations;
  return memory;
}
void give_back(void* memory) noexcept {
  if (memory) --live_allocations;
  std::free(memory);
}
void* allocate_or_throw(std::size_t bytes, std::size_t alignment) {
  if (void* memory = allocate(bytes, alignment)) return memory;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t bytes) { return allocate_or_throw(bytes, 0); }
void* operator new[](std::size_t bytes) { return allocate_or_throw(bytes, 0); }
void* operator new(std::size_t bytes, std::align_val_t alignment) { return allocate_or_throw(bytes, static_cast<std::size_t>(alignment)); }
void* operator new[](std::size_t bytes, std::align_val_t alignment) { return allocate_or_throw(bytes, static_cast<std::size_t>(alignment)); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return allocate(bytes, 0); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept { return allocate(bytes, 0); }
void operator delete(void* memory) noexcept { give_back(memory); }
void operator delete[](void* memory) noexcept { give_back(memory); }
void operator delete(void* memory, std::size_t) noexcept { give_back(memory); }
void operator delete[](void* memory, std::size_t) noexcept { give_back(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { give_back(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { give_back(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { give_back(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { give_back(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { give_back(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { give_back(memory); }

namespace {

using namespace faults;
namespace ts = tensorsmith;

std::size_t open_descriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

/// Runs `work() -> result<void>` with the first, second, … allocation failing, until one run does without a failure.
template <class Work>
void sweep(const fs::path& folder, Work&& work) {
  REQUIRE(work(false));  // what is made once in a process is made now
  const snapshot older = look(folder);
  REQUIRE(work(true));
  const auto complete = contents_of(look(folder));
  const std::size_t descriptors = open_descriptors();
  unsigned failures = 0, thrown = 0, late = 0;
  for (std::int64_t k = 0;; ++k) {
    restore(folder, older);
    INFO("allocation " << k);
    const std::int64_t before = live_allocations;
    failed_once = false;
    bool done = false, threw = false, other = false;
    ts::errc code = ts::errc::internal;
    until_failure = k;
    try {
      const ts::result<void> outcome = work(true);
      until_failure = -1;
      done = outcome.has_value();
      if (!done) code = outcome.error().code;
    } catch (const std::bad_alloc&) {
      until_failure = -1;
      threw = true;
    } catch (...) {
      until_failure = -1;
      other = true;
    }
    if (other) CHECK_FALSE(other);
    if (const std::int64_t now = live_allocations; now != before) CHECK(now == before);
    if (open_descriptors() != descriptors) CHECK(open_descriptors() == descriptors);
    const auto left = contents_of(look(folder));
    if (done && left != complete) CHECK(left == complete);
    // Memory may be missing for the answer alone, when the output is published.
    if (!done && left != contents_of(older) && left != complete) CHECK(left == contents_of(older));
    if (!done && left == complete) ++late;
    if (!done && !threw && code != ts::errc::limit) CHECK(code == ts::errc::limit);
    if (!failed_once) {
      CHECK(done);
      CHECK(k > 50);
      CHECK(failures + thrown > 20);
      CHECK(late < 16);
      return;
    }
    failures += !done && !threw;
    thrown += threw;
  }
}

template <class T>
ts::result<void> without_value(ts::result<T> outcome) {
  if (outcome) return {};
  return std::move(outcome).error();
}

/// `bytes` of a file, written to `out` by `write(catalog, path, force, job)` after the reader of its container and a cast.
template <class Read, class Write>
void convert_without_memory(const std::string& source, const fs::path& out, Read&& read, Write&& write) {
  fs::create_directories(out);
  programs::write_text(out / "older", "an older output");
  sweep(out, [&](bool cast) -> ts::result<void> {
    ts::job run;
    run.threads = 1;
    TENSORSMITH_TRY(auto file, ts::open_file(source));
    TENSORSMITH_TRY(ts::catalog tensors, read(std::move(file), run));
    ts::catalog chosen;
    for (const ts::catalog_entry& e : tensors.entries()) {
      ts::tensor_ref tensor = e.tensor;
      if (cast) {
        TENSORSMITH_TRY(tensor, ts::cast(tensor, ts::dtype::f16));
      }
      TENSORSMITH_CHECK(chosen.add(e.name, std::move(tensor), e.origin));
    }
    return write(chosen, (out / "model").string(), run);
  });
}

const auto from_safetensors = [](std::shared_ptr<const ts::byte_source> file, ts::job& run) { return ts::read_safetensors(std::move(file), run); };
const auto to_safetensors = [](const ts::catalog& tensors, const std::string& path, ts::job& run) {
  return without_value(ts::write_safetensors(tensors, path, {.force = true}, run));
};

}  // namespace

TEST_CASE("IO-11: each allocation fails: safetensors to safetensors") {
  const sources work;
  convert_without_memory(work.safetensors(), work / "out", from_safetensors, to_safetensors);
}

TEST_CASE("IO-11: each allocation fails: shards") {
  const sources work;
  convert_without_memory(work.safetensors(), work / "out", from_safetensors, [](const ts::catalog& tensors, const std::string& path, ts::job& run) {
    return without_value(ts::write_safetensors_sharded(tensors, path, {.max_shard_bytes = 20'000, .force = true}, run));
  });
}

TEST_CASE("IO-11: each allocation fails: torch to safetensors") {
  const sources work;
  convert_without_memory(work.torch(), work / "out", [](std::shared_ptr<const ts::byte_source> file, ts::job& run) -> ts::result<ts::catalog> {
    TENSORSMITH_TRY(ts::torch_checkpoint read, ts::read_torch(std::move(file), run.limits));
    return std::move(read.tensors);
  }, to_safetensors);
}

TEST_CASE("IO-11: each allocation fails: safetensors to torch") {
  const sources work;
  convert_without_memory(work.safetensors(), work / "out", from_safetensors, [](const ts::catalog& tensors, const std::string& path, ts::job& run) {
    return without_value(ts::write_torch(tensors, path, run, {.force = true}));
  });
}

TEST_CASE("IO-11: each allocation fails: safetensors to npz") {
  const sources work;
  convert_without_memory(work.safetensors(), work / "out", from_safetensors, [](const ts::catalog& tensors, const std::string& path, ts::job& run) {
    return without_value(ts::write_npz(tensors, path, run, {.force = true}));
  });
}
