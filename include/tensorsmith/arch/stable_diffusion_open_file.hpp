// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/stable_diffusion_open_file.hpp: a single-file checkpoint as a package: names, configurations, side files.
//
// Included by stable_diffusion_open.hpp.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/added_tokens.hpp"
#include "tensorsmith/arch/checkpoint_catalogs.hpp"
#include "tensorsmith/arch/config_overrides.hpp"
#include "tensorsmith/arch/derive_config.hpp"
#include "tensorsmith/arch/detect.hpp"
#include "tensorsmith/arch/pipeline_files.hpp"
#include "tensorsmith/arch/prediction.hpp"
#include "tensorsmith/arch/stable_diffusion_open_options.hpp"
#include "tensorsmith/arch/tokenizer_files.hpp"
#include "tensorsmith/format/checkpoint/read.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// The floating type that most bytes of these weights have, as transformers spells it.
inline std::string_view torch_type_of(const catalog& weights) {
  std::array<std::uint64_t, 4> bytes{};
  for (const catalog_entry& entry : weights.entries())
    if (const auto type = static_cast<std::size_t>(entry.tensor.type()); type < bytes.size()) bytes[type] += entry.tensor.info().bytes();
  constexpr std::string_view names[] = {"float64", "float32", "float16", "bfloat16"};  // the order of dtype
  return names[static_cast<std::size_t>(std::max_element(bytes.begin(), bytes.end()) - bytes.begin())];
}

inline std::string joined(const std::vector<std::string>& parts, std::string_view between) {
  std::string out;
  for (std::size_t i = 0; i < parts.size(); ++i) out.append(i ? between : "").append(parts[i]);
  return out;
}

/// Refuses files of architectures that are known and not supported. @fails unsupported, naming the family
inline result<void> refuse_foreign(const catalog& tensors, const std::string& path, const checkpoint_parts& parts, const open_options& options) {
  std::string where;
  const auto refuse = [&](std::string_view family, std::string place) {
    return failure{.code = errc::unsupported, .what = "the file holds " + std::string(family) + ", which is not supported here",
                   .file = path, .place = std::move(place), .expected = "a Stable Diffusion 1, 2 or XL model"};
  };
  if (const foreign_mark* mark = find_foreign(tensors, where)) return refuse(mark->family, "tensor " + quoted(where));
  if (parts.marked("edm_mean") || parts.marked("edm_std")) return refuse("a Playground 2.5 model", "tensor 'edm_mean'");
  if (parts.marked("edm_vpred.") && !options.prediction) {
    failure error = refuse("a CosXL model, trained on another noise schedule,", "tensor 'edm_vpred.sigma_max'");
    error.advice = "pass --prediction-type to convert its network all the same and set the schedule yourself";
    return error;
  }
  const checkpoint_part* unet = parts.find("unet");
  for (const auto& m : unet ? unet->members : std::vector<checkpoint_part::member>{}) {
    if (m.name == "label_emb.weight" || m.name == "class_embedding.weight") return refuse("an upscaler with noise levels", quoted(m.entry->name));
    if (m.name == "class_embedding.linear_1.weight") return refuse("a Stable unCLIP model", quoted(m.entry->name));
    if (m.name == "label_emb.0.0.weight")
      if (const checkpoint_part* text = parts.find("text_encoder"); text && text->prefix == "cond_stage_model.model.")
        return refuse("a Stable unCLIP model", quoted(m.entry->name));
  }
  if (!parts.parts.empty()) return {};
  std::string names;
  for (std::size_t i = 0; i < tensors.size() && i < 3; ++i) names += (i ? ", " : "") + quoted(tensors.entries()[i].name);
  return failure{.code = errc::unsupported, .what = "the file holds no Stable Diffusion model", .file = path,
                 .expected = "names like 'model.diffusion_model.input_blocks.0.0.weight' or 'down_blocks.0.resnets.0.conv1.weight'",
                 .found = tensors.empty() ? "no tensors" : std::to_string(tensors.size()) + " tensors: " + names + ", …"};
}

/// An autoencoder from wherever `--vae` points: a component's folder, a pipeline's folder, a file of it, or a whole checkpoint. Its
/// configuration is null if it came from a file.
inline result<component> open_vae(const std::string& path, const std::string& variant, job& run) {
  if (os::is_folder(path)) {
    const diffusers_options options{.variant = variant, .prefer_pickle = false, .components = {}};
    return read_diffusers_component(is_diffusers_folder(path) ? join_path(path, "vae") : path, "vae", options, run);
  }
  TENSORSMITH_TRY(const checkpoint_file file, read_checkpoint_file(path, run));
  TENSORSMITH_TRY(const checkpoint_parts parts, split_checkpoint(file.tensors));
  const checkpoint_part* part = parts.find("vae");
  if (!part)
    return failure{.code = errc::mismatch, .what = "the file given with --vae holds no autoencoder", .file = path,
                   .expected = "names like 'first_stage_model.encoder.conv_in.weight' or 'encoder.conv_in.weight'"};
  TENSORSMITH_TRY(named_weights weights, vae_weights(*part));
  component out;
  out.name = "vae";
  out.weights = std::move(weights.weights);
  out.ignored = std::move(weights.ignored);
  return out;
}

/// Opens one checkpoint; each step fills in what the next ones need.
class checkpoint_opening {
 public:
  checkpoint_opening(const std::string& path, const open_options& options, job& run) : path_(path), options_(options), run_(run) {}

  result<package> open() {
    TENSORSMITH_TRY(checkpoint_file file, read_checkpoint_file(path_, run_));
    return open(std::move(file));
  }

  /// Goes on from a file that was read already.
  result<package> open(checkpoint_file file) {
    TENSORSMITH_TRY(wanted_, wanted_models(options_));
    file_ = std::move(file);
    TENSORSMITH_TRY(parts_, split_checkpoint(file_.tensors));
    TENSORSMITH_CHECK(refuse_foreign(file_.tensors, path_, parts_, options_));
    TENSORSMITH_CHECK(read_overrides());
    out_.source = path_;
    TENSORSMITH_CHECK(read_unet());
    TENSORSMITH_CHECK(choose_family());
    TENSORSMITH_CHECK(read_text_encoders());
    TENSORSMITH_CHECK(read_vae());
    TENSORSMITH_CHECK(require_components());
    TENSORSMITH_CHECK(choose_training());
    TENSORSMITH_CHECK(configure());
    TENSORSMITH_CHECK(add_files());
    assemble();
    return std::move(out_);
  }

 private:
  bool wanted(std::string_view name) const {
    return wanted_.empty() || std::find(wanted_.begin(), wanted_.end(), name) != wanted_.end();
  }
  failure in_file(failure error) const {
    if (error.file.empty()) error.file = path_;
    return error;
  }
  component* add(std::string name, named_weights weights) {
    component part;
    part.name = std::move(name);
    part.weights = std::move(weights.weights);
    part.ignored = std::move(weights.ignored);
    return &models_.emplace_back(std::move(part));
  }
  component* find(std::string_view name) {
    for (component& part : models_)
      if (part.name == name) return &part;
    return nullptr;
  }

  /// What the user gives, else the yaml beside the file.
  result<void> read_overrides() {
    TENSORSMITH_TRY(overrides_, read_config_overrides(options_.config_dir, run_.limits));
    if (!options_.config_dir.empty()) return {};
    const std::string sidecar = path_.substr(0, path_.size() - extension(path_).size()) + ".yaml";
    if (!os::is_regular_file(sidecar)) return {};
    if (auto read = read_yaml_override(overrides_, sidecar, run_.limits); !read)
      run_.warn(sidecar, "the configuration beside the model is not used: " + read.error().message());
    else
      run_.info(sidecar, "the configuration beside the model is used");
    return {};
  }

  /// The UNet tells the family also where it is not asked for; what is wrong with it does not matter then.
  result<void> read_unet() {
    const checkpoint_part* part = parts_.find("unet");
    if (!part) return {};
    if (!wanted("unet")) {
      if (const auto weights = unet_weights(*part, file_.tensors, false))
        if (auto shape = unet_shape_of(weights.value().weights)) shape_ = std::move(shape).value();
      run_.info("unet", "left out: not among the components asked for");
      return {};
    }
    const bool average = options_.ema;
    if (average && part->form == part_form::diffusers)
      return failure{.code = errc::usage, .what = "--ema needs a checkpoint that keeps moving averages beside its weights", .file = path_,
                     .found = "a UNet with diffusers names"};
    auto weights = unet_weights(*part, file_.tensors, average);
    if (!weights) return in_file(std::move(weights).error());
    component* unet = add("unet", std::move(weights).value());
    for (const catalog_entry& entry : file_.tensors.entries())
      if (!average && entry.name.substr(0, 10) == "model_ema." && why_ignored(entry.name).empty())
        unet->ignored.push_back(entry.name + ": a moving average; --ema takes these");
    auto shape = unet_shape_of(unet->weights);
    if (!shape && !overrides_.find("unet")) return in_file(std::move(shape).error());
    if (shape) shape_ = std::move(shape).value();
    if (shape_) TENSORSMITH_CHECK(check_overrides(overrides_, *shape_));
    if (average) out_.findings.push_back({"unet.weights", "moving averages", "--ema"});
    return {};
  }

  result<void> choose_family() {
    family_vote vote;
    TENSORSMITH_CHECK(vote_of_user(vote, options_.model));
    vote_of_parts(vote, parts_);
    if (shape_) vote_of_unet(vote, *shape_);
    if (const json_value* config = overrides_.find("unet")) vote_of_config(vote, *config);
    if (!shape_ && !overrides_.find("unet")) TENSORSMITH_CHECK(vote_of_text(vote));
    auto outcome = vote.outcome();
    if (!outcome) return in_file(std::move(outcome).error());
    family_ = outcome->first;
    out_.family = std::string(name_of(family_));
    out_.findings.insert(out_.findings.begin(), outcome->second.begin(), outcome->second.end());
    return {};
  }

  /// Without a UNet the width of a text encoder tells: 768 CLIP-L, 1024 ViT-H, 1280 bigG.
  result<void> vote_of_text(family_vote& vote) {
    const checkpoint_part* part = parts_.find("text_encoder");
    if (!part || !part->prefix.empty()) return {};
    for (const checkpoint_part::member& m : part->members) {
      if (path_reader(m.name).rest().find("token_embedding.weight") == std::string_view::npos || m.entry->tensor.shape().size() != 2) continue;
      const std::size_t width = m.entry->tensor.shape()[1];
      const std::string why = "its width is " + std::to_string(width);
      if (width == 768) vote.allow({sd_family::sd1, sd_family::sdxl}, "the text encoder", why);
      if (width == 1024) vote.allow({sd_family::sd2}, "the text encoder", why);
      if (width == 1280) vote.allow({sd_family::sdxl, sd_family::sdxl_refiner}, "the text encoder", why);
    }
    return {};
  }

  /// The component that a part with text encoder names is in this family.
  std::string text_name(const checkpoint_part& part) const {
    const bool first_embedder = part.prefix == "conditioner.embedders.0.model.";
    const bool alone = part.prefix.empty() && (part.form == part_form::open_clip || file_.tensors.contains("text_projection.weight"));
    if (family_ == sd_family::sdxl_refiner && (first_embedder || alone || part.component == "text_encoder")) return "text_encoder_2";
    return family_ == sd_family::sdxl && alone ? "text_encoder_2" : part.component;
  }

  result<void> read_text_encoders() {
    for (const checkpoint_part& part : parts_.parts) {
      if (part.component.substr(0, 12) != "text_encoder") continue;
      const std::string name = text_name(part);
      if (!wanted(name)) {
        run_.info(name, "left out: not among the components asked for");
        continue;
      }
      const bool projected = name == "text_encoder_2";
      auto weights = part.form == part_form::open_clip ? open_clip_weights(part, file_.tensors, projected) : clip_weights(part, projected);
      if (!weights) return in_file(std::move(weights).error());
      component* text = add(name, std::move(weights).value());
      // OpenCLIP's encoders compute the exact gelu; files with transformers' names do not tell, except by the encoder they are.
      const bool exact = part.form == part_form::open_clip || projected || family_ == sd_family::sd2;
      auto shape = clip_shape_of(text->weights);
      if (!shape) return in_file(std::move(shape).error());
      text_.push_back({name, *shape, exact ? clip_activation::gelu : clip_activation::quick_gelu});
    }
    return {};
  }

  result<void> read_vae() {
    if (!options_.vae.empty() && wanted("vae")) {
      TENSORSMITH_TRY(component part, open_vae(options_.vae, options_.variant, run_));
      out_.findings.push_back({"vae", options_.vae, "--vae"});
      if (parts_.find("vae")) run_.info("vae", "the autoencoder of " + quoted(path_) + " is not used; --vae gives another");
      models_.push_back(std::move(part));
    } else if (const checkpoint_part* part = parts_.find("vae"); part && !wanted("vae")) {
      run_.info("vae", "left out: not among the components asked for");
      if (const auto weights = vae_weights(*part))
        if (auto shape = vae_shape_of(weights.value().weights)) vae_shape_ = std::move(shape).value();
    } else if (part) {
      auto weights = vae_weights(*part);
      if (!weights) return in_file(std::move(weights).error());
      add("vae", std::move(weights).value());
    }
    component* vae = find("vae");
    if (!vae || !vae->config.is_null()) return {};
    auto shape = vae_shape_of(vae->weights);
    if (!shape) return in_file(std::move(shape).error());
    vae_shape_ = std::move(shape).value();
    return {};
  }

  std::vector<std::string> family_models() const {
    if (family_ == sd_family::sdxl) return {"text_encoder", "text_encoder_2", "unet", "vae"};
    if (family_ == sd_family::sdxl_refiner) return {"text_encoder_2", "unet", "vae"};
    return {"text_encoder", "unet", "vae"};
  }

  result<void> require_components() {
    const auto family = family_models();
    for (const std::string& name : wanted_)
      if (std::find(family.begin(), family.end(), name) == family.end())
        return failure{.code = errc::usage, .what = "a model of the family " + out_.family + " has no " + name, .file = path_,
                       .advice = "correct --components"};
    std::vector<std::string> missing, present;
    for (const std::string& name : family)
      if (find(name)) present.push_back(name);
      else if (wanted(name)) missing.push_back(name);
    if (!missing.empty()) {
      const bool vae = missing.back() == "vae", others = missing.size() > (vae ? 1 : 0);
      std::string advice = vae && !others ? "pass --vae PATH with an autoencoder" : "";
      if (!present.empty() && wanted_.empty())
        advice += (advice.empty() ? "" : ", or ") + ("convert what there is with --components " + joined(present, ","));
      if (vae && others) advice += (advice.empty() ? "" : "; ") + std::string("--vae PATH gives an autoencoder");
      return failure{.code = errc::mismatch, .what = "the checkpoint lacks " + joined(missing, ", "), .file = path_,
                     .expected = wanted_.empty() ? "all components of " + out_.family : joined(wanted_, ", "),
                     .found = present.empty() ? "none of them" : joined(present, ", "), .advice = std::move(advice)};
    }
    return check_widths();
  }

  /// The text states that the encoders give must be as wide as those that the UNet takes.
  result<void> check_widths() {
    std::size_t sum = 0;
    for (const text_part& text : text_) sum += text.shape.width;
    const bool complete = text_.size() == family_models().size() - 2;
    if (!shape_ || !complete || shape_->cross_attention == 0 || shape_->cross_attention == sum) return {};
    return failure{.code = errc::mismatch, .what = "the UNet and the text encoders do not fit together", .file = path_,
                   .expected = "text states of width " + std::to_string(shape_->cross_attention), .found = std::to_string(sum),
                   .advice = "the file is a mixture of different models"};
  }

  sd_task task() const {
    return shape_ ? task_of_channels(shape_->in_channels).value_or(sd_task::text_to_image) : sd_task::text_to_image;
  }

  result<void> choose_training() {
    if (shape_ && !task_of_channels(shape_->in_channels) && !overrides_.find("unet"))
      return failure{.code = errc::unsupported, .what = "no known pipeline gives the UNet this many channels", .file = path_,
                     .expected = "4, 5, 8 or 9", .found = std::to_string(shape_->in_channels), .advice = "pass --config DIR to say what it is"};
    training_facts facts{.user = options_.prediction, .yaml = {}, .metadata = file_.metadata, .global_step = file_.global_step};
    if (overrides_.yaml) facts.yaml = overrides_.yaml->parameterization;
    std::optional<std::string> epsilon;
    const checkpoint_part* text = parts_.find("text_encoder");
    if (task() != sd_task::text_to_image) epsilon = "inpainting, depth and editing variants of SD2 predict epsilon";
    else if (text && text->prefix == "conditioner.embedders.0.model.") epsilon = "SD2 Turbo (prefix conditioner.embedders.0.model.) predicts epsilon";
    if (overrides_.scheduler && !facts.user) {
      const json_value* type = overrides_.scheduler->find("prediction_type");
      const std::string says = type && type->as_string() ? *type->as_string() : "epsilon";
      prediction_.velocity = says == "v_prediction";
      prediction_.finding = {"prediction_type", says, "scheduler_config.json of " + quoted(overrides_.source)};
    } else {
      TENSORSMITH_TRY(prediction_, choose_prediction(family_, facts, parts_, epsilon));
    }
    if (prediction_.guessed && find("unet"))
      run_.warn("scheduler", "the file does not say what the model predicts; v_prediction at 768 pixels is assumed. "
                             "Pass --prediction-type epsilon for a 512 pixel base model");
    out_.findings.push_back(prediction_.finding);
    image_size_ = options_.image_size.value_or(family_ == sd_family::sd2 && !prediction_.velocity ? 512 : conventions_of(family_).image_size);
    out_.findings.push_back({"image_size", std::to_string(image_size_), options_.image_size ? "--image-size" : "custom of " + out_.family});
    return {};
  }

  /// True if the user gave this component's configuration; it is taken as it is then.
  bool take_override(component& part) {
    const json_value* given = overrides_.find(part.name);
    if (!given) return false;
    part.config = *given;
    out_.findings.push_back({part.name, "configuration", "given: " + quoted(overrides_.source)});
    return true;
  }

  result<void> configure() {
    const auto keep = [&](component& part, derived_config derived) {
      part.config = std::move(derived.config);
      for (evidence& finding : derived.findings) out_.findings.push_back(std::move(finding));
    };
    if (component* unet = find("unet"); unet && !take_override(*unet)) {
      unet_choices choices;
      choices.sample_size = std::max<std::size_t>(1, image_size_ / (vae_shape_ ? vae_shape_->scale() : 8));
      if (family_ == sd_family::sd2 && (prediction_.velocity || file_.global_step == 110000)) choices.upcast_attention = true;
      if (overrides_.yaml && overrides_.yaml->num_heads) choices.heads = overrides_.yaml->num_heads;
      else if (overrides_.yaml) choices.head_size = overrides_.yaml->num_head_channels;
      auto derived = derive_unet_config(*shape_, family_, choices);
      if (!derived) return in_file(std::move(derived).error());
      keep(*unet, std::move(derived).value());
    }
    for (const text_part& text : text_)
      if (component* part = find(text.name); part && !take_override(*part)) {
        auto derived = derive_clip_config(text.name, text.shape, text.activation, torch_type_of(part->weights));
        if (!derived) return in_file(std::move(derived).error());
        keep(*part, std::move(derived).value());
      }
    if (component* vae = find("vae"); vae && vae->config.is_null() && !take_override(*vae)) {
      auto derived = derive_vae_config(*vae_shape_, family_, image_size_);
      if (!derived) return in_file(std::move(derived).error());
      if (overrides_.yaml && overrides_.yaml->scale_factor) {
        derived->config.set("scaling_factor", *overrides_.yaml->scale_factor);
        derived->findings.back() = {"vae.scaling_factor", "given", "scale_factor of " + quoted(overrides_.yaml_file)};
      }
      keep(*vae, std::move(derived).value());
    }
    return {};
  }

  result<void> add_files() {
    const pipeline_parts parts{.text_encoder = find("text_encoder") != nullptr, .text_encoder_2 = find("text_encoder_2") != nullptr,
                               .unet = find("unet") != nullptr, .vae = find("vae") != nullptr, .feature_extractor = !is_sdxl(family_)};
    scheduler_choices choices{.velocity = prediction_.velocity, .zero_snr = prediction_.zero_snr, .beta_start = {}, .beta_end = {}, .timesteps = {}};
    if (const auto& yaml = overrides_.yaml) {
      choices.beta_start = yaml->linear_start;
      choices.beta_end = yaml->linear_end;
      choices.timesteps = yaml->timesteps;
    }
    json_value scheduler = overrides_.scheduler ? *overrides_.scheduler : make_scheduler_config(family_, task(), choices);
    if (overrides_.scheduler && options_.prediction) scheduler.set("prediction_type", prediction_.name());
    const json_value* cls = scheduler.find("_class_name");
    out_.side_files.push_back(json_side_file("scheduler/scheduler_config.json", scheduler));
    const std::string given = options_.tokenizer_dir;
    const bool beside_config = given.empty() && !overrides_.source.empty() && is_diffusers_folder(overrides_.source);
    const std::string neighbour = beside_config ? overrides_.source : std::string(parent_path(path_));
    TENSORSMITH_CHECK(add_tokenizers(out_.side_files, family_, parts, given, neighbour, run_));
    TENSORSMITH_CHECK(restore_tokens());
    if (parts.feature_extractor)
      out_.side_files.push_back(json_side_file("feature_extractor/preprocessor_config.json", make_preprocessor_config()));
    out_.index = overrides_.index ? *overrides_.index
                                  : make_model_index(family_, task(), parts, cls && cls->as_string() ? *cls->as_string() : "DDIMScheduler");
    return {};
  }

  /// Tokens that were added to the file's text encoders before: their names stand in its metadata, the tokenizers get them here.
  result<void> restore_tokens() {
    auto metadata = file_.metadata;
    for (const auto& [key, value] : file_.scalars)
      if (key == added_tokens_key && value.as_string()) metadata.emplace_back(key, *value.as_string());
    TENSORSMITH_TRY(const std::vector<token_row> tokens, tokens_of_metadata(metadata, path_, run_.limits));
    if (tokens.empty()) return {};
    for (const text_part& text : text_) {
      component* const part = find(text.name);
      if (static_cast<std::size_t>(tokens.back().id) >= text.shape.vocabulary)
        return failure{.code = errc::mismatch, .what = "the file's metadata name a token that its text encoder has no row for", .file = path_,
                       .place = "token " + quoted(tokens.back().token), .expected = "an id below " + std::to_string(text.shape.vocabulary),
                       .found = std::to_string(tokens.back().id)};
      if (const json_value* end = part ? part->config.find("eos_token_id") : nullptr; end && *end == json_value(2) && tokens[0].id > 0)
        part->config.set("eos_token_id", tokens[0].id - 1);
    }
    TENSORSMITH_CHECK(add_tokens_to_metadata(out_.metadata, tokens, path_, run_.limits));
    for (const char* folder : {"tokenizer", "tokenizer_2"}) {
      TENSORSMITH_TRY(auto known, read_tokenizer(out_.side_files, folder, run_.limits));
      if (!known) continue;
      TENSORSMITH_CHECK(check_restored(*known, tokens));
      TENSORSMITH_CHECK(add_tokens(out_.side_files, *known, tokens, run_.limits));
      run_.info(folder, std::to_string(tokens.size()) + " tokens that the file names are added, " + quoted(tokens[0].token) + " first");
    }
    return {};
  }

  /// @fails mismatch if the tokenizer has other tokens under the ids of the file
  result<void> check_restored(const tokenizer_vocabulary& known, const std::vector<token_row>& tokens) const {
    const auto refuse = [&](const token_row& row, std::string found) {
      return failure{.code = errc::mismatch, .what = "the " + known.folder + " does not fit the tokens that were added to the file", .file = path_,
                     .place = "token " + quoted(row.token), .expected = "the id " + std::to_string(row.id), .found = std::move(found),
                     .advice = "pass --tokenizer DIR with the tokenizer of the original model"};
    };
    std::map<std::int64_t, std::string_view> names;
    for (const auto& [token, id] : known.ids) names.emplace(id, token);
    for (const token_row& row : tokens) {
      if (const auto own = known.find(row.token); own && *own != row.id) return refuse(row, std::to_string(*own));
      if (const auto other = names.find(row.id); other != names.end() && other->second != row.token) return refuse(row, quoted(other->second) + " there");
    }
    return {};
  }

  /// Puts the components in their order and lists what was left out.
  void assemble() {
    for (const std::string_view name : diffusers_models)
      if (component* part = find(name)) out_.components.push_back(std::move(*part));
    component& first = out_.find("unet") ? *out_.find("unet") : out_.components.front();
    const auto owner = [&](const std::string& name) -> component& {
      for (const checkpoint_part& part : parts_.parts)
        if (!part.prefix.empty() && name.compare(0, part.prefix.size(), part.prefix) == 0) {
          const bool text = part.component.substr(0, 12) == "text_encoder";
          if (component* found = out_.find(text ? text_name(part) : part.component)) return *found;
        }
      return first;
    };
    for (const ignored_tensor& tensor : parts_.ignored) owner(tensor.name).ignored.push_back(tensor.name + ": " + tensor.reason);
    for (const std::string& marker : parts_.markers) first.ignored.push_back(marker + ": a marker, see prediction_type");
    for (const std::string& part : file_.ignored) first.ignored.push_back(part);
    for (const catalog_entry* entry : parts_.unknown) first.ignored.push_back(entry->name + ": outside every known part");
    if (!parts_.unknown.empty())
      run_.warn(path_, std::to_string(parts_.unknown.size()) + " tensors lie outside every known part and are ignored, the first of them " +
                           quoted(parts_.unknown[0]->name));
  }

  struct text_part {
    std::string name;
    clip_shape shape;
    clip_activation activation;
  };

  const std::string& path_;
  const open_options& options_;
  job& run_;
  std::vector<std::string> wanted_;
  checkpoint_file file_;
  checkpoint_parts parts_;
  config_overrides overrides_;
  std::vector<component> models_;
  std::optional<unet_shape> shape_;
  std::optional<vae_shape> vae_shape_;
  std::vector<text_part> text_;
  sd_family family_ = sd_family::sd1;
  prediction_choice prediction_;
  std::size_t image_size_ = 512;
  package out_;
};

}  // namespace detail

TENSORSMITH_END_NAMESPACE
