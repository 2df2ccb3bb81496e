// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/checkpoint_names.hpp: the tensors of a pipeline under the names of a single-file (LDM) checkpoint.
//
// Include this to write a checkpoint from a diffusers folder. The tables are those that checkpoints are read with (arch/names/), the
// other way round; nothing is computed but that q, k and v are stacked, and the projection of OpenCLIP encoders is transposed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/checkpoint_catalogs.hpp"
#include "tensorsmith/arch/detect.hpp"
#include "tensorsmith/format/safetensors/sharded.hpp"
#include "tensorsmith/io/json.hpp"
#include "tensorsmith/tensor/memory.hpp"
#include "tensorsmith/tensor/stacked.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What a single-file checkpoint of a pipeline holds.
struct single_file_checkpoint {
  catalog tensors;
  std::vector<std::string> ignored;  ///< "component.name: reason", tensors that such a file has no place for
  std::vector<std::pair<std::string, std::string>> metadata;  ///< for a safetensors header
  std::optional<std::int64_t> global_step;                    ///< for a torch file, beside state_dict
};

/// Where a text encoder lies in a checkpoint, and in which form.
struct text_encoder_place {
  std::string_view prefix;
  bool open_clip = false;  ///< OpenCLIP's names, else transformers'
};

/// The place of a family's text encoder; `second`: that of SDXL's second one. The refiner has one.
constexpr text_encoder_place text_encoder_place_of(sd_family family, bool second) noexcept {
  switch (family) {
    case sd_family::sd1: return {"cond_stage_model.transformer.", false};
    case sd_family::sd2: return {"cond_stage_model.model.", true};
    case sd_family::sdxl_refiner: return {"conditioner.embedders.0.model.", true};
    case sd_family::sdxl: break;
  }
  if (second) return {"conditioner.embedders.1.model.", true};
  return {"conditioner.embedders.0.transformer.", false};
}

namespace detail {

/// Gives the tensors of a package their names.
class checkpoint_naming {
 public:
  checkpoint_naming(const package& in, job& run) : in_(in), run_(run) {}

  result<single_file_checkpoint> make() {
    TENSORSMITH_CHECK(collect());
    TENSORSMITH_CHECK(choose_family());
    TENSORSMITH_CHECK(collect_texts());
    for (const component& part : parts_) {
      const bool text = part.name.substr(0, 12) == "text_encoder";
      if (part.name == "unet") TENSORSMITH_CHECK(add_unet(part));
      else if (part.name == "vae") TENSORSMITH_CHECK(add_vae(part));
      else if (text) TENSORSMITH_CHECK(add_text(part));
      else leave_out(part);
    }
    if (!unknown_.empty())
      return failure{.code = errc::mismatch, .what = "tensors have names that no known model of this kind has", .file = in_.source,
                     .found = listed(unknown_), .advice = "this is a variant that checkpoints have no names for"};
    if (entries_.empty())
      return failure{.code = errc::mismatch, .what = "there is no part of a checkpoint", .file = in_.source,
                     .expected = "a UNet, an autoencoder or a text encoder"};
    TENSORSMITH_CHECK(add_evidence());
    TENSORSMITH_CHECK(out_.tensors.add_all(std::move(entries_)));
    return std::move(out_);
  }

 private:
  /// Named components are taken as they are; a file's tensors are taken apart by their prefixes first.
  result<void> collect() {
    for (const component& part : in_.components) {
      if (!part.name.empty()) {
        parts_.push_back(part);
        continue;
      }
      TENSORSMITH_TRY(split_, split_checkpoint(part.weights));
      for (const catalog_entry* entry : split_.unknown) unknown_.push_back(entry->name);
      for (const ignored_tensor& tensor : split_.ignored) out_.ignored.push_back(tensor.name + ": " + tensor.reason);
      for (const std::string& marker : split_.markers)
        if (const catalog_entry* entry = part.weights.find(marker)) entries_.push_back(*entry);
      for (const catalog_entry& entry : part.weights.entries())
        if (entry.name.substr(0, 10) == "model_ema." && why_ignored(entry.name).empty())
          out_.ignored.push_back(entry.name + ": a moving average");
      file_ = &part.weights;
      if (const checkpoint_part* unet = split_.find("unet")) {
        TENSORSMITH_TRY(named_weights weights, unet_weights(*unet, part.weights, false));
        TENSORSMITH_CHECK(keep("unet", std::move(weights), part.config));
      }
      if (const checkpoint_part* vae = split_.find("vae")) {
        TENSORSMITH_TRY(named_weights weights, vae_weights(*vae));
        TENSORSMITH_CHECK(keep("vae", std::move(weights), {}));
      }
    }
    return {};
  }

  result<void> keep(std::string name, named_weights weights, json_value config) {
    component part;
    part.name = std::move(name);
    part.weights = std::move(weights.weights);
    part.config = std::move(config);
    out_.ignored.insert(out_.ignored.end(), weights.ignored.begin(), weights.ignored.end());
    parts_.push_back(std::move(part));
    return {};
  }

  const component* find(std::string_view name) const {
    for (const component& part : parts_)
      if (part.name == name) return &part;
    return nullptr;
  }

  result<void> choose_family() {
    if (const auto named = family_named(in_.family)) {
      family_ = *named;
      return {};
    }
    family_vote vote;
    vote_of_parts(vote, split_);
    if (const component* unet = find("unet")) {
      if (const json_value* width = unet->config.find("cross_attention_dim"); width && width->as_integer()) {
        vote_of_config(vote, unet->config);
      } else {
        TENSORSMITH_TRY(const unet_shape shape, unet_shape_of(unet->weights));
        vote_of_unet(vote, shape);
      }
    } else {
      vote_of_texts(vote);
    }
    auto outcome = vote.outcome();
    if (outcome) {
      family_ = outcome->first;
    } else if (!find("unet") && outcome.error().place == "family") {  // open, not contradictory: only the prefix depends on it
      for (const sd_family family : {sd_family::sd1, sd_family::sd2, sd_family::sdxl, sd_family::sdxl_refiner})
        if (vote.left().contains(family)) {
          family_ = family;
          break;
        }
      if (!find("vae") || parts_.size() > 1)
        run_.warn(in_.source, "no UNet tells the family; the names are those of " + std::string(name_of(family_)) + " checkpoints");
    } else {
      failure error = std::move(outcome).error();
      error.file = in_.source;
      return error;
    }
    return {};
  }

  /// Text encoders by themselves: what there is, and how wide.
  void vote_of_texts(family_vote& vote) const {
    const json_value* aesthetics = in_.index.find("requires_aesthetics_score");
    if (aesthetics && aesthetics->as_bool() && *aesthetics->as_bool())
      vote.allow({sd_family::sdxl_refiner}, "model_index.json", "requires_aesthetics_score");
    const auto is_second = [](const component& part) { return part.name == "text_encoder_2"; };
    const bool second = std::any_of(in_.components.begin(), in_.components.end(), is_second);
    if (second && in_.find("text_encoder")) vote.allow({sd_family::sdxl}, "the text encoders", "there are two");
    else if (second) vote.allow({sd_family::sdxl, sd_family::sdxl_refiner}, "the text encoder", "it is a second one");
    else if (const component* first = in_.find("text_encoder")) vote_of_width(vote, first->weights);
    else if (const checkpoint_part* part = split_.find("text_encoder"); part && part->prefix.empty() && file_) vote_of_width(vote, *file_);
  }

  static void vote_of_width(family_vote& vote, const catalog& weights) {
    constexpr std::string_view words_of_encoders[] = {"text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight",
                                                      "token_embedding.weight"};
    for (const std::string_view name : words_of_encoders) {
      const catalog_entry* words = weights.find(name);
      if (!words || words->tensor.shape().size() != 2) continue;
      const std::size_t width = words->tensor.shape()[1];
      const std::string why = "its width is " + std::to_string(width);
      if (width == 768) vote.allow({sd_family::sd1, sd_family::sdxl}, "the text encoder", why);
      else if (width == 1024) vote.allow({sd_family::sd2}, "the text encoder", why);
      else if (width == 1280) vote.allow({sd_family::sdxl, sd_family::sdxl_refiner}, "the text encoder", why);
      else if (weights.contains("text_projection.weight"))
        vote.allow({sd_family::sdxl, sd_family::sdxl_refiner}, "the text encoder", "it has a projection");
      return;
    }
  }

  /// The text encoders of a file, now that the family is known.
  result<void> collect_texts() {
    for (const checkpoint_part& part : split_.parts) {
      if (part.component.substr(0, 12) != "text_encoder") continue;
      const bool projected = part.component == "text_encoder_2" || family_ == sd_family::sdxl_refiner;
      TENSORSMITH_TRY(named_weights weights, part.form == part_form::open_clip ? open_clip_weights(part, *file_, projected)
                                                                              : clip_weights(part, true));
      TENSORSMITH_CHECK(keep(part.component, std::move(weights), {}));
    }
    return {};
  }

  void leave_out(const component& part) {
    for (const catalog_entry& entry : part.weights.entries())
      out_.ignored.push_back(part.name + "." + entry.name + ": checkpoints have no place for this component");
    run_.info(part.name, "left out: checkpoints have no place for it");
  }

  void put(std::string name, tensor_ref tensor, const std::string& origin) { entries_.push_back({std::move(name), std::move(tensor), origin}); }

  bool ignored(const component& part, const std::string& name) {
    const std::string_view reason = why_ignored(name);
    if (!reason.empty()) out_.ignored.push_back(part.name + "." + name + ": " + std::string(reason));
    return !reason.empty();
  }

  static std::vector<std::string_view> names_of(const catalog& weights) {
    std::vector<std::string_view> names;
    for (const catalog_entry& entry : weights.entries()) names.emplace_back(entry.name);
    return names;
  }

  result<void> add_unet(const component& part) {
    const auto names = names_of(part.weights);
    const unet_name_layout layout = unet_layout_of_diffusers(names);
    for (const catalog_entry& entry : part.weights.entries()) {
      if (ignored(part, entry.name)) continue;
      if (const auto name = unet_name_to_ldm(entry.name, layout)) put("model.diffusion_model." + *name, entry.tensor, entry.origin);
      else unknown_.push_back(part.name + "." + entry.name);
    }
    return {};
  }

  result<void> add_vae(const component& part) {
    const auto names = names_of(part.weights);
    const vae_name_layout layout = vae_layout_of(names);
    for (const catalog_entry& entry : part.weights.entries()) {
      if (ignored(part, entry.name)) continue;
      const std::string modern = modern_vae_name(entry.name);
      const auto name = vae_name_to_ldm(modern, layout);
      if (!name) {
        unknown_.push_back(part.name + "." + entry.name);
        continue;
      }
      tensor_ref tensor = entry.tensor;
      if (const shape_type& shape = tensor.shape(); is_vae_projection(modern) && shape.size() == 2) {
        TENSORSMITH_TRY(tensor, reshaped(tensor, {shape[0], shape[1], 1, 1}));
      }
      put("first_stage_model." + *name, std::move(tensor), entry.origin);
    }
    return {};
  }

  result<void> add_text(const component& part) {
    // The refiner's encoder is published under either name.
    const text_encoder_place place = text_encoder_place_of(family_, part.name == "text_encoder_2" || is_second_by_width(part));
    const std::string prefix(place.prefix);
    if (place.open_clip) return add_open_clip(part, prefix);
    for (const catalog_entry& entry : part.weights.entries()) {
      if (ignored(part, entry.name)) continue;
      const auto name = clip_name_to_ldm(entry.name);
      if (!name) unknown_.push_back(part.name + "." + entry.name);
      else if (*name == "text_projection.weight")
        out_.ignored.push_back(part.name + "." + entry.name + ": this text encoder has no projection");
      else put(prefix + *name, entry.tensor, entry.origin);
    }
    return {};
  }

  /// The folder of one component does not tell which encoder of SDXL it is; the projection does.
  bool is_second_by_width(const component& part) const {
    return in_.components.size() == 1 && part.weights.contains("text_projection.weight") && family_ == sd_family::sdxl;
  }

  result<void> add_open_clip(const component& part, const std::string& prefix) {
    std::map<std::string, std::vector<const catalog_entry*>> stacks;
    for (const catalog_entry& entry : part.weights.entries()) {
      if (ignored(part, entry.name)) continue;
      const auto target = open_clip_name_to_ldm(classic_clip_name(entry.name));
      if (!target) {
        unknown_.push_back(part.name + "." + entry.name);
      } else if (target->action == open_clip_action::third) {
        auto& thirds = stacks.try_emplace(prefix + target->name, 3).first->second;
        thirds[target->part] = &entry;
      } else if (target->action == open_clip_action::transpose && family_ == sd_family::sd2) {
        // Beside a projection, loaders take the last block for the one that SD2 does not use.
        out_.ignored.push_back(part.name + "." + entry.name + ": this text encoder has no projection");
      } else if (target->action == open_clip_action::transpose) {
        TENSORSMITH_TRY(tensor_ref turned, transposed(entry.tensor));
        put(prefix + target->name, std::move(turned), entry.origin);
      } else {
        put(prefix + target->name, entry.tensor, entry.origin);
      }
    }
    for (const auto& [name, thirds] : stacks) {
      std::vector<tensor_ref> tensors;
      for (std::size_t k = 0; k < 3; ++k) {
        if (!thirds[k])
          return failure{.code = errc::mismatch, .what = "a projection to be stacked is missing", .file = in_.source, .place = part.name,
                         .expected = "query, key and value for " + quoted(name), .found = "no " + std::string(open_clip_thirds[k])};
        tensors.push_back(thirds[k]->tensor);
      }
      TENSORSMITH_TRY(tensor_ref whole, stacked_rows(std::move(tensors)));
      put(name, std::move(whole), thirds[0]->origin);
    }
    return {};
  }

  /// What the scheduler's configuration knows and weights do not tell.
  result<void> add_evidence() {
    out_.metadata = {{"format", "pt"}};
    out_.global_step = in_.global_step;
    const auto file = std::find_if(in_.side_files.begin(), in_.side_files.end(),
                                   [](const side_file& f) { return f.path == "scheduler/scheduler_config.json"; });
    if (file == in_.side_files.end() || !find("unet")) return {};
    TENSORSMITH_TRY(const json_value config, read_json(*file->bytes, run_.limits.config_bytes, run_.limits));
    const json_value *type = config.find("prediction_type"), *rescale = config.find("rescale_betas_zero_snr");
    const std::string says = type && type->as_string() ? *type->as_string() : "epsilon";
    if (says != "epsilon" && says != "v_prediction") {
      run_.warn("scheduler", "checkpoints cannot say that the model predicts " + quoted(says));
      return {};
    }
    const bool velocity = says == "v_prediction", zero_snr = rescale && rescale->as_bool() && *rescale->as_bool();
    if (family_ == sd_family::sd2) {
      out_.metadata.emplace_back("modelspec.prediction_type", velocity ? "v" : "epsilon");
      // Loaders take other variants than text to image for epsilon without being told.
      const catalog_entry* conv = find("unet")->weights.find("conv_in.weight");
      const bool base = !velocity && conv && conv->tensor.shape().size() == 4 && conv->tensor.shape()[1] == 4;
      if (base && !out_.global_step) out_.global_step = 875000;
      run_.info("scheduler", "prediction_type " + says + " is told by the metadata modelspec.prediction_type" +
                                 (base ? ", in torch files by global_step 875000, that of the 512 pixel base model" : ""));
    } else if (velocity) {
      add_marker("v_pred");
    }
    if (zero_snr) add_marker("ztsnr");
    const bool marked = velocity && family_ != sd_family::sd2;
    if (marked || zero_snr) {
      const std::string_view markers = marked && zero_snr ? "the empty tensors 'v_pred' and 'ztsnr' tell"
                                       : marked           ? "the empty tensor 'v_pred' tells"
                                                          : "the empty tensor 'ztsnr' tells";
      run_.info("scheduler", std::string(markers) + " loaders of prediction_type " + says + (zero_snr ? " and rescale_betas_zero_snr" : ""));
    }
    return {};
  }

  void add_marker(const std::string& name) {
    for (const catalog_entry& entry : entries_)
      if (entry.name == name) return;
    entries_.push_back({name, in_memory({name, dtype::f32, {0}}, {}), "scheduler_config.json"});
  }

  const package& in_;
  job& run_;
  sd_family family_ = sd_family::sd1;
  checkpoint_parts split_;
  const catalog* file_ = nullptr;
  std::vector<component> parts_;
  std::vector<catalog_entry> entries_;
  std::vector<std::string> unknown_;
  single_file_checkpoint out_;
};

}  // namespace detail

/// The tensors of a pipeline, or of some of its components, under the names of a single-file checkpoint, with the evidence of the
/// prediction type that such files keep. Components have diffusers' and transformers' names; the tensors of a component without a name
/// are told by their prefixes. Metadata and global_step are for the writer. What is left out is listed and, by component, noted.
/// @fails mismatch (names that no table knows, listed; contradictory or missing parts), malformed (the scheduler's configuration)
inline result<single_file_checkpoint> make_checkpoint(const package& in, job& run) { return detail::checkpoint_naming(in, run).make(); }

/// The tensors of make_checkpoint. What is left out goes to `run.notes`. @fails as make_checkpoint
inline result<catalog> checkpoint_catalog(const package& in, job& run) {
  TENSORSMITH_TRY(single_file_checkpoint made, make_checkpoint(in, run));
  for (const std::string& tensor : made.ignored) run.info(in.source, "left out: " + tensor);
  return std::move(made.tensors);
}

TENSORSMITH_END_NAMESPACE
