// SPDX-License-Identifier: MIT
//
// make_tiny_sd/write_model.hpp: a made-up model on the disk: as a diffusers folder or as one checkpoint file.
#pragma once

#include <cstdint>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ldm_checkpoint.hpp"
#include "make_model.hpp"
#include "model_configs.hpp"
#include "tensorsmith/format/safetensors/write.hpp"
#include "tensorsmith/format/torch/write.hpp"
#include "tensorsmith/io/json.hpp"
#include "tensorsmith/io/publish.hpp"

namespace make_tiny_sd {

namespace ts = tensorsmith;

struct written {
  std::uint64_t bytes = 0, tensors = 0, parameters = 0;
};

inline ts::result<written> write_folder(const model_choice& m, std::uint64_t seed, const std::string& path, bool force, const ts::job& run) {
  TENSORSMITH_TRY(const std::vector<ts::component> components, make_components(m, seed, false));
  TENSORSMITH_TRY(auto output, ts::folder_publication::begin(path, {.force = force}));
  written sum;
  std::vector<ts::placement> work;
  for (const ts::component& c : components) {
    const bool text = c.name.starts_with("text_encoder");
    TENSORSMITH_TRY(const auto plan, ts::plan_safetensors(c.weights, {{"format", "pt"}}, run.limits));
    TENSORSMITH_TRY(const auto file, output.create(c.name + (text ? "/model.safetensors" : "/diffusion_pytorch_model.safetensors"), plan.size));
    TENSORSMITH_CHECK(file->write_at(0, std::as_bytes(std::span(plan.header))));
    auto more = ts::safetensors_placements(plan, c.weights, *file);
    work.insert(work.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
    TENSORSMITH_CHECK(output.write_text(c.name + "/config.json", ts::write_json(c.config) + '\n'));
    sum.bytes += plan.size;
    sum.tensors += c.weights.size();
    sum.parameters += c.weights.parameters();
  }
  for (const text_file& side : plan_side_files(m))
    TENSORSMITH_CHECK(output.write_text(side.path, side.json.is_null() ? side.text : ts::write_json(side.json) + '\n'));
  TENSORSMITH_CHECK(ts::execute(work, run));
  TENSORSMITH_CHECK(output.commit());
  return sum;
}

inline ts::result<written> write_checkpoint(const model_choice& m, std::uint64_t seed, bool torch, const std::string& path, bool force,
                                            const ts::job& run) {
  TENSORSMITH_TRY(const std::vector<ts::component> components, make_components(m, seed, true));
  TENSORSMITH_TRY(const ts::catalog tensors, ldm_checkpoint(components, m));
  written sum{0, tensors.size(), tensors.parameters()};
  if (torch) {
    // As training code leaves it: the weights under state_dict, counters beside them. SD2's counter would tell a release.
    ts::torch_write_options options{.nested = "state_dict", .scalars = {{"epoch", 0}}, .force = force};
    if (m.family != ts::sd_family::sd2) options.scalars.emplace_back("global_step", 470000);
    TENSORSMITH_TRY(sum.bytes, ts::write_torch(tensors, path, run, options));
  } else {
    TENSORSMITH_TRY(const auto done, ts::write_safetensors(tensors, path, {.metadata = {{"format", "pt"}}, .force = force}, run));
    sum.bytes = done.bytes;
  }
  return sum;
}

}  // namespace make_tiny_sd
