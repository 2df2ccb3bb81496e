// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/stable_diffusion_open.hpp: opens a Stable Diffusion model, whatever form it has, as one package.
//
// Include this to read a diffusers folder, a .safetensors or a .ckpt file. The components have the same names and shapes whichever
// form they come from, so that everything built from them is the same, byte for byte.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/stable_diffusion_open_file.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// Refuses components of other architectures, and quantized ones, by what their configuration says they are. @fails unsupported
inline result<void> check_class(const std::string& folder, const component& part) {
  if (const json_value* quantized = part.config.find("quantization_config"); quantized && !quantized->is_null())
    return failure{.code = errc::unsupported, .what = "the configuration of " + part.name + " says that its weights are quantized",
                   .file = folder, .place = "/quantization_config", .expected = "no such entry", .found = std::string(quantized->kind()),
                   .advice = "save the model without quantization"};
  const bool text = part.name.substr(0, 12) == "text_encoder";
  const char* const wanted = text ? "clip_text_model" : part.name == "unet" ? "UNet2DConditionModel" : "AutoencoderKL";
  const json_value* says = part.config.find(text ? "model_type" : "_class_name");
  if (!says || !says->as_string() || *says->as_string() == wanted || (text && *says->as_string() == "clip")) return {};
  return failure{.code = errc::unsupported, .what = "the architecture of " + part.name + " is not supported", .file = folder,
                 .place = text ? "/model_type" : "/_class_name", .expected = wanted, .found = quoted(*says->as_string())};
}

/// Opens a pipeline's folder or that of one component.
class folder_opening {
 public:
  folder_opening(const std::string& path, const open_options& options, job& run) : path_(path), options_(options), run_(run) {}

  result<package> open() {
    if (options_.ema)
      return failure{.code = errc::usage, .what = "--ema is for checkpoints that keep moving averages beside their weights", .file = path_,
                     .found = "a folder", .advice = "folders keep them as separate files, such as a variant non_ema"};
    TENSORSMITH_TRY(wanted_, wanted_models(options_));
    TENSORSMITH_CHECK(read());
    return complete();
  }

  /// Goes on from a folder that was read already.
  result<package> open(package in) {
    TENSORSMITH_TRY(wanted_, wanted_models(options_));
    out_ = std::move(in);
    single_ = out_.index.is_null();
    return complete();
  }

 private:
  result<package> complete() {
    TENSORSMITH_CHECK(read_given());
    for (const component& part : out_.components) TENSORSMITH_CHECK(check_class(path_, part));
    TENSORSMITH_CHECK(choose_family());
    TENSORSMITH_CHECK(require_components());
    TENSORSMITH_CHECK(replace_vae());
    TENSORSMITH_CHECK(apply_options());
    return std::move(out_);
  }

  bool wanted(std::string_view name) const {
    return wanted_.empty() || std::find(wanted_.begin(), wanted_.end(), name) != wanted_.end();
  }

  result<void> read() {
    diffusers_options options{.variant = options_.variant, .prefer_pickle = false, .components = wanted_};
    if (is_component_folder(path_)) {
      TENSORSMITH_TRY(const json_value config, read_config(path_, "config.json", run_.limits));
      const std::string name = component_of_config(config);
      if (name.empty())
        return failure{.code = errc::unsupported, .what = "the folder holds no component of Stable Diffusion", .file = path_,
                       .expected = "a UNet2DConditionModel, an AutoencoderKL or a CLIP text model"};
      TENSORSMITH_TRY(component part, read_diffusers_component(path_, name, options, run_));
      out_.source = path_;
      out_.components.push_back(std::move(part));
      single_ = true;
      return {};
    }
    // An autoencoder that is replaced anyway may be missing.
    if (!options_.vae.empty()) {
      options.components.clear();
      for (const std::string_view name : diffusers_models)
        if (wanted(name) && name != "vae") options.components.emplace_back(name);
      if (options.components.empty()) options.components.emplace_back("none");
    }
    TENSORSMITH_TRY(out_, read_diffusers_folder(path_, options, run_));
    return {};
  }

  result<void> read_given() {
    TENSORSMITH_TRY(const config_overrides given, read_config_overrides(options_.config_dir, run_.limits));
    for (component& part : out_.components)
      if (const json_value* config = given.find(part.name)) {
        part.config = *config;
        out_.findings.push_back({part.name, "configuration", "given: " + quoted(given.source)});
      }
    if (given.yaml)
      return failure{.code = errc::usage, .what = "a yaml configuration is for single files; a folder has configurations of its own",
                     .file = given.yaml_file};
    if (given.scheduler) replace_file(json_side_file("scheduler/scheduler_config.json", *given.scheduler));
    return {};
  }

  result<void> choose_family() {
    family_vote vote;
    TENSORSMITH_CHECK(vote_of_user(vote, options_.model));
    if (const component* unet = out_.find("unet")) vote_of_config(vote, unet->config);
    if (const json_value* cls = out_.index.find("_class_name"); cls && cls->as_string()) {
      const bool xl = cls->as_string()->find("XL") != std::string::npos;
      const family_set either = xl ? family_set{sd_family::sdxl, sd_family::sdxl_refiner} : family_set{sd_family::sd1, sd_family::sd2};
      if (cls->as_string()->find("StableDiffusion") == 0) vote.allow(either, "model_index.json", "_class_name is " + quoted(*cls->as_string()));
    }
    if (!out_.find("unet"))
      if (const json_value* aesthetics = out_.index.find("requires_aesthetics_score"); aesthetics && aesthetics->as_bool() && *aesthetics->as_bool())
        vote.allow({sd_family::sdxl_refiner}, "model_index.json", "requires_aesthetics_score");
    auto outcome = vote.outcome();
    if (!outcome) {
      // A component by itself is converted by its configuration; the family matters for nothing but the summary then.
      if (!out_.find("unet") && (single_ || !wanted_.empty())) return {};
      failure error = std::move(outcome).error();
      error.file = path_;
      return error;
    }
    family_ = outcome->first;
    out_.family = std::string(name_of(*family_));
    out_.findings.insert(out_.findings.end(), outcome->second.begin(), outcome->second.end());
    return {};
  }

  result<void> require_components() {
    if (single_) return {};
    const auto says = [&](std::string_view name) {
      const json_value* entry = out_.index.find(name);
      return entry && entry->as_array() && entry->as_array()->size() == 2 && !(*entry->as_array())[1].is_null();
    };
    const bool vae_given = !options_.vae.empty();
    for (const std::string& name : wanted_)
      if (!out_.find(name) && !(name == "vae" && vae_given))
        return failure{.code = errc::mismatch, .what = "the pipeline has no " + name, .file = join_path(path_, "model_index.json"),
                       .advice = "correct --components"};
    if (!wanted_.empty()) return {};
    if (!out_.find("unet")) {
      const json_value* cls = out_.index.find("_class_name");
      return failure{.code = errc::unsupported, .what = "the pipeline has no UNet", .file = join_path(path_, "model_index.json"),
                     .place = "/_class_name", .expected = "a Stable Diffusion 1, 2 or XL pipeline",
                     .found = cls && cls->as_string() ? quoted(*cls->as_string()) : "no name"};
    }
    std::string missing;
    const auto need = [&](std::string_view name) {
      if (!out_.find(name) && !(name == "vae" && vae_given)) missing += (missing.empty() ? "" : ", ") + std::string(name);
    };
    if (family_ == sd_family::sdxl_refiner) {  // some re-packings keep its encoder under the first name
      if (!out_.find("text_encoder")) need("text_encoder_2");
    } else {
      need("text_encoder");
      if (family_ == sd_family::sdxl) need("text_encoder_2");
    }
    need("vae");
    if (missing.empty()) return {};
    std::string present;
    for (const component& part : out_.components) present += (present.empty() ? "" : ",") + part.name;
    return failure{.code = errc::mismatch, .what = "the pipeline lacks " + missing, .file = path_,
                   .place = says(missing) ? "" : "model_index.json", .found = present,
                   .advice = "convert what there is with --components " + present + (out_.find("vae") ? "" : ", or pass --vae PATH")};
  }

  result<void> replace_vae() {
    if (options_.vae.empty() || !wanted("vae") || single_) return {};
    TENSORSMITH_TRY(component part, open_vae(options_.vae, options_.variant, run_));
    if (part.config.is_null()) {
      TENSORSMITH_TRY(const vae_shape shape, vae_shape_of(part.weights));
      TENSORSMITH_TRY(derived_config derived, derive_vae_config(shape, family_.value_or(sd_family::sd1),
                                                                options_.image_size.value_or(conventions_of(family_.value_or(sd_family::sd1)).image_size)));
      part.config = std::move(derived.config);
      for (evidence& finding : derived.findings) out_.findings.push_back(std::move(finding));
    }
    out_.findings.push_back({"vae", options_.vae, "--vae"});
    out_.components.push_back(std::move(part));
    return {};
  }

  void replace_file(side_file file) {
    for (side_file& old : out_.side_files)
      if (old.path == file.path) return old = std::move(file), void();
    out_.side_files.push_back(std::move(file));
  }

  /// What the user says about training and tokenizers changes what the folder says; nothing else does.
  result<void> apply_options() {
    TENSORSMITH_CHECK(apply_prediction());
    if (options_.image_size) {
      for (component& part : out_.components) {
        const json_value* channels = part.config.find("block_out_channels");
        if (part.name == "vae") part.config.set("sample_size", integer(*options_.image_size));
        if (part.name == "vae" && channels && channels->as_array() && !channels->as_array()->empty() && out_.find("unet"))
          out_.find("unet")->config.set("sample_size", integer(*options_.image_size >> std::min<std::size_t>(channels->as_array()->size() - 1, 8)));
      }
      out_.findings.push_back({"image_size", std::to_string(*options_.image_size), "--image-size"});
    }
    if (options_.tokenizer_dir.empty()) return {};
    const pipeline_parts parts{.text_encoder = out_.find("text_encoder") != nullptr, .text_encoder_2 = out_.find("text_encoder_2") != nullptr,
                               .unet = true, .vae = true, .feature_extractor = true};
    auto& files = out_.side_files;
    files.erase(std::remove_if(files.begin(), files.end(), [](const side_file& f) { return f.path.substr(0, 9) == "tokenizer"; }), files.end());
    return add_tokenizers(files, family_.value_or(sd_family::sd1), parts, options_.tokenizer_dir, {}, run_);
  }

  result<void> apply_prediction() {
    if (options_.prediction) {
      const auto velocity = is_velocity(*options_.prediction);
      if (!velocity)
        return failure{.code = errc::usage, .what = "unknown prediction type " + quoted(*options_.prediction), .expected = "epsilon or v_prediction"};
      for (side_file& file : out_.side_files) {
        if (file.path != "scheduler/scheduler_config.json") continue;
        TENSORSMITH_TRY(json_value config, read_json(*file.bytes, run_.limits.config_bytes, run_.limits));
        config.set("prediction_type", *velocity ? "v_prediction" : "epsilon");
        file = json_side_file(file.path, config);
      }
      out_.findings.push_back({"prediction_type", *velocity ? "v_prediction" : "epsilon", "--prediction-type"});
    } else {
      for (const side_file& file : out_.side_files) {
        if (file.path != "scheduler/scheduler_config.json") continue;
        TENSORSMITH_TRY(const json_value config, read_json(*file.bytes, run_.limits.config_bytes, run_.limits));
        const json_value* type = config.find("prediction_type");
        out_.findings.push_back({"prediction_type", type && type->as_string() ? *type->as_string() : "epsilon",
                                 type ? "scheduler_config.json" : "scheduler_config.json does not say; its default"});
      }
    }
    return {};
  }

  const std::string& path_;
  const open_options& options_;
  job& run_;
  std::vector<std::string> wanted_;
  std::optional<sd_family> family_;
  bool single_ = false;
  package out_;
};

}  // namespace detail

/// Opens a diffusers folder, the folder of one component, or a single file (safetensors or torch, told by content). No weight is read.
/// Remarks go to `run.notes`; what was concluded from what is in the package's findings.
/// @fails usage (options), unsupported (other architectures, by name), mismatch (missing or contradictory parts, with what to pass),
/// malformed, limit, path, io.
inline result<package> open_stable_diffusion(const std::string& path, const open_options& options, job& run) {
  if (os::is_folder(path)) return detail::folder_opening(path, options, run).open();
  return detail::checkpoint_opening(path, options, run).open();
}

/// Makes a pipeline of what a reader gave: a single component without a name is a checkpoint, whose tensors get their final names and
/// whose configuration is derived; named components are taken as they are. @fails as open_stable_diffusion
inline result<package> recognize_stable_diffusion(package in, const open_options& options, job& run) {
  if (in.is_single_model()) {
    checkpoint_file file;
    file.tensors = std::move(in.components[0].weights);
    file.ignored = std::move(in.components[0].ignored);
    file.metadata = std::move(in.metadata);
    file.global_step = in.global_step;
    file.scalars = std::move(in.scalars);
    return detail::checkpoint_opening(in.source, options, run).open(std::move(file));
  }
  const std::string source = in.source;  // the opening refers to its path until it is done
  return detail::folder_opening(source, options, run).open(std::move(in));
}

TENSORSMITH_END_NAMESPACE
