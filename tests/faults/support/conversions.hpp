// SPDX-License-Identifier: MIT
//
// tests/faults/support/conversions.hpp: small sources of every container, and the conversions that the fault sweeps repeat.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "examples/run.hpp"
#include "faults/support/sweep.hpp"

namespace faults {

/// A safetensors file of F32 tensors with the given numbers of elements, whose values differ.
inline std::string safetensors_bytes(const std::vector<std::pair<std::string, std::uint64_t>>& tensors) {
  std::string header = "{", data;
  std::uint32_t state = 12345;
  for (const auto& [name, elements] : tensors) {
    const std::uint64_t begin = data.size();
    for (std::uint64_t i = 0; i < elements; ++i) {
      state = state * 1664525u + 1013904223u;
      const float value = static_cast<float>(static_cast<std::int32_t>(state)) / 1e9f;
      data.append(reinterpret_cast<const char*>(&value), sizeof value);
    }
    header += (header.size() > 1 ? ",\"" : "\"") + name + "\":{\"dtype\":\"F32\",\"shape\":[" + std::to_string(elements) + "],\"data_offsets\":[" +
              std::to_string(begin) + "," + std::to_string(data.size()) + "]}";
  }
  header += "}";
  header.append((8 - header.size() % 8) % 8, ' ');
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + header + data;
}

inline std::string model_bytes() {
  return safetensors_bytes({{"first.weight", 3000}, {"first.bias", 10}, {"second.weight", 4096}, {"second.bias", 1}, {"third.weight", 5000}});
}

/// The sources, made when they are first asked for, and what is done with them.
class sources {
 public:
  operator const fast_folder&() const { return work_; }  // NOLINT: a folder with something in it
  const fast_folder& folder() const { return work_; }
  std::string operator/(const std::string& name) const { return work_ / name; }

  std::string safetensors() const {
    return once("in/model.safetensors", [&](const std::string& path) { programs::write_text(path, model_bytes()); });
  }
  std::string torch() const {
    return once("in/model.pt", [&](const std::string& path) { convert({safetensors(), path, "--to", "torch", "--quiet"}); });
  }
  std::string shards() const {
    const std::string folder = once("in/shards", [&](const std::string& path) {
      convert({safetensors(), path, "--to", "safetensors", "--shard-size", "20kB", "--quiet"});
    });
    return folder + "/model.safetensors.index.json";
  }
  std::string checkpoint() const {
    return once("in/sd.safetensors", [&](const std::string& path) { finish("make-tiny-sd", {path, "--family", "sd1", "--form", "safetensors"}); });
  }

  std::string pipeline() const {
    return once("in/pipeline", [&](const std::string& path) {
      programs::write_text(path + "/unet/diffusion_pytorch_model.safetensors", safetensors_bytes({{"conv_in.weight", 3000}, {"conv_in.bias", 5}}));
      programs::write_text(path + "/vae/diffusion_pytorch_model.safetensors", safetensors_bytes({{"encoder.conv_in.weight", 300}}));
      programs::write_text(path + "/unet/config.json", R"({"_class_name":"UNet2DConditionModel"})");
      programs::write_text(path + "/vae/config.json", R"({"_class_name":"AutoencoderKL"})");
      programs::write_text(path + "/scheduler/scheduler_config.json", R"({"_class_name":"PNDMScheduler"})");
      programs::write_text(path + "/model_index.json",
                           R"({"_class_name":"StableDiffusionPipeline","unet":["diffusers","UNet2DConditionModel"],)"
                           R"("vae":["diffusers","AutoencoderKL"],"scheduler":["diffusers","PNDMScheduler"]})");
    });
  }

  /// "cast", "shards", "from torch", "to torch", "to npz", "folder", "pipeline", "from shards".
  conversion named(const std::string& name) const {
    const auto make = [&](std::string source, const std::string& target, strings more) {
      strings arguments{std::move(source), work_ / ("out/" + target), "--quiet", "--threads", "1"};
      arguments.insert(arguments.end(), more.begin(), more.end());
      return conversion{name, arguments, target};
    };
    if (name == "cast") return make(safetensors(), "new/model.safetensors", {"--dtype", "f16"});
    if (name == "copy") return make(safetensors(), "model.safetensors", {});
    if (name == "shards") return make(safetensors(), "model", {"--to", "safetensors", "--shard-size", "20kB"});
    if (name == "from shards") return make(shards(), "model.safetensors", {"--verify-output"});
    if (name == "from torch") return make(torch(), "model.safetensors", {});
    if (name == "to torch") return make(safetensors(), "model.pt", {});
    if (name == "to npz") return make(safetensors(), "model.npz", {});
    if (name == "folder") return make(pipeline(), "pipeline", {"--to", "diffusers", "--dtype", "f16"});
    if (name == "pipeline") return make(checkpoint(), "pipeline", {"--to", "diffusers"});
    throw std::runtime_error("no conversion " + name);
  }

 private:
  static void finish(const std::string& program, const strings& arguments) {
    const outcome run = faults::run(program, arguments);
    if (run.status != 0) throw std::runtime_error(program + ": " + run.err);
  }
  static void convert(const strings& arguments) { finish("convert-weights", arguments); }

  template <class Make>
  std::string once(const std::string& name, Make&& make) const {
    const std::string path = work_ / name;
    fs::create_directories(fs::path(path).parent_path());
    if (!fs::exists(path)) make(path);
    return path;
  }

  fast_folder work_;
};

}  // namespace faults
