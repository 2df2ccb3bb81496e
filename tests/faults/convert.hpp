// SPDX-License-Identifier: MIT
//
// tests/faults/convert.hpp: runs convert-weights on files that must be refused, or read, and looks at what it says and leaves.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "examples/run.hpp"
#include "support/catch.hpp"

namespace faults {

using programs::outcome;
using strings = std::vector<std::string>;

/// The exit status of a code: 2 for a bad command line, 10 and up for the codes in their order.
inline int status_of(std::string_view code) {
  constexpr std::array<std::string_view, 13> codes = {"FMT", "LIM", "UNS", "PTH", "ITG", "MIS", "NUM", "IO", "NOSPC", "NET", "BUSY", "DENY", "CANC"};
  for (std::size_t i = 0; i < codes.size(); ++i)
    if (codes[i] == code) return 10 + static_cast<int>(i);
  return code == "USE" ? 2 : -1;
}

/// A file, folder or link, as a comparison sees it: its kind, size, time of change, and contents if it is short.
inline std::map<std::string, std::string> snapshot(const programs::fs::path& root) {
  namespace fs = programs::fs;
  std::map<std::string, std::string> out;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    std::string what = entry.is_symlink() ? "link " + fs::read_symlink(entry.path()).string() : entry.is_directory() ? "folder" : "file ";
    if (entry.is_regular_file() && !entry.is_symlink()) {
      what += std::to_string(entry.file_size()) + ' ' + std::to_string(entry.last_write_time().time_since_epoch().count()) + ' ';
      if (entry.file_size() < 100'000) what += programs::read_text(entry.path());
    }
    out[fs::relative(entry.path(), root).string()] = what;
  }
  return out;
}

/// Runs a program, which must end with `code` and exactly this message (behind its name and the code), and change nothing in `folder`.
inline void refused(const std::string& program, const programs::fs::path& folder, const strings& arguments, const std::string& code,
                    const std::string& message) {
  CAPTURE(arguments);
  const auto before = snapshot(folder);
  const auto begin = std::chrono::steady_clock::now();
  const outcome run = programs::run(program, arguments);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(20));
  CHECK(run.status == status_of(code));
  CHECK(run.err == program + ": " + code + ' ' + message + "\n");
  CHECK(snapshot(folder) == before);
}

/// Runs convert-weights, which must succeed; its JSON report.
inline nlohmann::json converted(strings arguments) {
  CAPTURE(arguments);
  arguments.push_back("--json");
  const outcome run = programs::run("convert-weights", arguments);
  INFO(run.err);
  REQUIRE(run.status == 0);
  auto report = nlohmann::json::parse(run.out, nullptr, false);
  REQUIRE(report.is_object());
  return report;
}

/// A safetensors file: header as JSON, data.
struct safetensors_parts {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  std::string data;
};

inline safetensors_parts read_parts(const programs::fs::path& path) {
  const std::string all = programs::read_text(path);
  std::uint64_t length = 0;
  REQUIRE(all.size() >= 8);
  std::memcpy(&length, all.data(), sizeof length);
  REQUIRE(length <= all.size() - 8);
  return {nlohmann::ordered_json::parse(all.substr(8, length)), all.substr(8 + length)};
}

inline void write_parts(const programs::fs::path& path, const safetensors_parts& file) {
  std::string header = file.header.dump();
  header.append((8 - header.size() % 8) % 8, ' ');
  const std::uint64_t length = header.size();
  programs::write_text(path, std::string(reinterpret_cast<const char*>(&length), sizeof length) + header + file.data);
}

/// Adds a tensor to a file that is being put together.
inline void add_tensor(safetensors_parts& file, const std::string& name, const std::string& dtype, const std::vector<std::size_t>& shape,
                       const std::string& bytes) {
  file.header[name] = {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {file.data.size(), file.data.size() + bytes.size()}}};
  file.data += bytes;
}

/// The bytes of every tensor of a safetensors file.
inline std::map<std::string, std::string> tensors_of(const programs::fs::path& path) {
  const safetensors_parts parts = read_parts(path);
  std::map<std::string, std::string> out;
  for (const auto& [name, info] : parts.header.items()) {
    if (name == "__metadata__") continue;
    const auto first = info["data_offsets"][0].get<std::size_t>(), last = info["data_offsets"][1].get<std::size_t>();
    out[name] = info["dtype"].get<std::string>() + info["shape"].dump() + parts.data.substr(first, last - first);
  }
  return out;
}

}  // namespace faults
