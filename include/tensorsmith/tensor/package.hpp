// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/package.hpp: what `open` yields: ordered components (weights and configuration) and side files.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/json_value.hpp"
#include "tensorsmith/tensor/catalog.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A file that is carried along unchanged: a scheduler's configuration, a tokenizer's vocabulary.
struct side_file {
  std::string path;                           ///< relative to the output folder: "tokenizer/vocab.json"
  std::shared_ptr<const byte_source> bytes;   ///< its contents
};

/// A fact that the detection relied on: what was decided, from what.
struct evidence {
  std::string subject;  ///< "family", "unet.attention_head_dim", "prediction_type"
  std::string value;    ///< "sdxl", "[5, 10]", "v_prediction"
  std::string reason;   ///< "input_blocks.4.1…attn2.to_k.weight has width 2048"
};

/// A named model of a package: "unet", "vae", "text_encoder", "text_encoder_2".
struct component {
  std::string name;
  catalog weights;
  json_value config;                  ///< its config.json
  std::vector<std::string> ignored;   ///< source tensors left out on purpose, "name: reason"
};

/// Ordered components and side files. One component in the simple case.
struct package {
  std::string source;                 ///< the path that was opened, as the user gave it
  std::string family;                 ///< "sd1", "sd2", "sdxl", "sdxl-refiner", or empty if not a pipeline
  std::vector<component> components;
  json_value index;                   ///< model_index.json, or null
  std::vector<side_file> side_files;
  std::vector<evidence> findings;
  std::vector<note> notes;
  std::vector<std::pair<std::string, std::string>> metadata;  ///< what a single file says about itself (safetensors)
  std::optional<std::int64_t> global_step;                    ///< training steps, if a checkpoint tells
  std::string container;              ///< of a single file: "safetensors", "torch", "npy", "npz", "gguf"; else empty
  std::string nested;                 ///< the dict of a torch file that holds the tensors: "state_dict"; empty: the top
  std::vector<std::pair<std::string, json_value>> scalars;    ///< numbers and texts beside the tensors of a torch file

  /// One component without a name: a single file, or a folder of one model. Its tensors have whatever names the file gives them.
  bool is_single_model() const noexcept { return components.size() == 1 && components[0].name.empty(); }

  component* find(std::string_view name) noexcept {
    for (component& c : components)
      if (c.name == name) return &c;
    return nullptr;
  }
  const component* find(std::string_view name) const noexcept { return const_cast<package*>(this)->find(name); }
};

TENSORSMITH_END_NAMESPACE
