// SPDX-License-Identifier: MIT
//
// tensorsmith/format/onnx/report.hpp: how an ONNX folder is to be written, and what was (or would be) written. No protobuf here.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/core/config.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Where the weights of a written graph lie.
enum class weights_mode : std::uint8_t {
  copy,      ///< in a data file beside the graph
  in_place,  ///< in the source file, at its offset there; only graphs are written
  embed,     ///< inside the .onnx file (below 2 GiB)
};

/// How `write_onnx_folder` writes.
struct onnx_write_options {
  weights_mode weights = weights_mode::copy;
  std::string data_name = "model.onnx_data";  ///< name of the data file; diffusers' tools expect "weights.pb"
  bool force = false;                         ///< replace an existing output
};

/// A file of the output. `linked`: it shares its bytes with a source, nothing was written for it.
struct written_file {
  std::string path;  ///< relative to the output folder
  std::uint64_t bytes = 0;
  bool linked = false;
};

/// What became of one component.
struct component_report {
  std::string name;
  std::vector<written_file> files;
  std::uint64_t tensors = 0;       ///< weight tensors; small constants of the graph do not count
  std::uint64_t parameters = 0;    ///< their elements
  std::uint64_t weight_bytes = 0;  ///< their bytes
  std::uint64_t nodes = 0;
  std::vector<std::pair<std::string, std::uint64_t>> dtypes;  ///< element type → tensors, in order of appearance
  std::string weights;             ///< "copied", "in place", "hard link", "clone", "embedded"
};

/// What a run wrote, or would write.
struct write_report {
  std::vector<component_report> components;
  std::vector<written_file> other_files;   ///< side files and model_index.json
  std::uint64_t total_bytes = 0;           ///< written, without linked files
  std::uint64_t linked_bytes = 0;          ///< in files that share their bytes with a source
  std::uint64_t peak_memory_bytes = 0;     ///< estimate: tiles of all threads and the graphs' structure
  double seconds = 0;                      ///< filled by whoever measures
};

TENSORSMITH_END_NAMESPACE
