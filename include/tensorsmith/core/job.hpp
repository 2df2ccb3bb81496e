// SPDX-License-Identifier: MIT
//
// tensorsmith/core/job.hpp: everything a run may carry: limits, threads, memory budget, progress, cancellation, diagnostics.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Limits on what a file may declare. Exceeding one is errc::limit and the message names the limit.
struct limits {
  std::uint64_t safetensors_header_bytes = 100'000'000;
  std::uint64_t tensors = 2'000'000;
  std::uint64_t name_bytes = 64 * 1024;
  std::uint64_t rank = 64;
  std::uint64_t elements = std::uint64_t{1} << 48;  ///< exclusive bound on each dimension and on the element count
  std::uint64_t json_depth = 64;
  std::uint64_t config_bytes = 16u << 20;
  std::uint64_t index_bytes = 64u << 20;
  std::uint64_t tokenizer_bytes = 256u << 20;
  std::uint64_t npy_header_bytes = 1u << 20;
  std::uint64_t gguf_metadata_bytes = 256u << 20;  ///< key-value pairs and tensor infos: all before the data
  std::uint64_t pickle_bytes = 64u << 20;
  std::uint64_t pickle_opcodes = 5'000'000;
  std::uint64_t pickle_depth = 256;
  std::uint64_t pickle_integer_bytes = 16;
  std::uint64_t zip_entries = 1'000'000;
  std::uint64_t zip_directory_bytes = 256u << 20;
  std::uint64_t onnx_nodes = 250'000;           ///< nodes of a graph and of the graphs inside it
  std::uint64_t onnx_values = 1'000'000;        ///< inputs and outputs of all nodes
  std::uint64_t onnx_initializers = 65'536;     ///< tensors of a graph, those in attributes of nodes included
  std::uint64_t onnx_depth = 32;                ///< graphs inside attributes of nodes, one inside the other
  std::uint64_t expansion = 100;  ///< bytes produced per byte stored, beyond 64 MiB (deflated entries, repeated elements)
  bool check_crc = true;        ///< verify the CRC-32 of zip entries that are read
  bool allow_suspicious = false;  ///< read pickles that name globals of the block list (nothing runs either way)
};

/// One remark about a run that is no failure: something ignored, derived, converted, left out.
struct note {
  enum class level : std::uint8_t { info, warning };
  level severity = level::info;
  std::string subject;  ///< component, file or tensor concerned
  std::string text;     ///< one sentence
};

/// Progress of the executor, in bytes written so far.
struct progress {
  std::uint64_t done_bytes = 0;
  std::uint64_t total_bytes = 0;
};

/// What a run carries. Plain data; the caller keeps it alive for the duration of the calls it is given to.
struct job {
  tensorsmith::v0::limits limits;
  unsigned threads = 0;                        ///< 0: one per hardware thread
  std::size_t memory_bytes = 256u << 20;       ///< budget for tiles and whole-tensor recipes
  std::size_t tile_bytes = 256u << 10;         ///< bytes of one tile: it and what it becomes stay in the L2 cache (512 KiB to 2 MiB a core)
  std::function<void(const progress&)> on_progress;   ///< called from one thread at a time
  const std::atomic<bool>* cancel = nullptr;   ///< set to true from outside (a signal handler may) to stop
  std::vector<note> notes;                     ///< appended to by plan-time code; never by worker threads

  bool cancelled() const noexcept { return cancel != nullptr && cancel->load(std::memory_order_relaxed); }
  void info(std::string subject, std::string text) {
    notes.push_back({note::level::info, std::move(subject), std::move(text)});
  }
  void warn(std::string subject, std::string text) {
    notes.push_back({note::level::warning, std::move(subject), std::move(text)});
  }
};

TENSORSMITH_END_NAMESPACE
