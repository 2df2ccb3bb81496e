// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/stable_diffusion_build.hpp: from the weights of a Stable Diffusion pipeline to its graphs.
//
// Include this after arch/stable_diffusion_open.hpp, or with any package whose components are named as diffusers names them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/autoencoder_kl.hpp"
#include "tensorsmith/arch/clip_text.hpp"
#include "tensorsmith/arch/interface.hpp"
#include "tensorsmith/arch/pipeline_index.hpp"
#include "tensorsmith/arch/unet2d_condition.hpp"
#include "tensorsmith/graph/verify.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// How to build the graphs of a pipeline.
struct build_options {
  io_interface io{};                  ///< names and forms of inputs and outputs
  std::optional<tensorsmith::v0::dtype> dtype{};  ///< f32 or f16: what the graphs store and compute in; nothing: as stored
  cast_overflow overflow = cast_overflow::error;  ///< of a weight's finite values that do not fit that type
  std::shared_ptr<cast_tally> tally{};            ///< counts them where that is no error
  tensorsmith::v0::dtype io_float = tensorsmith::v0::dtype::f32;  ///< type of floating-point inputs and outputs: f32 or f16
};

namespace detail {

/// The floating type that holds most bytes of a component's weights; f32 if there is none.
inline dtype most_common_float(const catalog& weights) {
  std::map<dtype, std::uint64_t> bytes;
  for (const catalog_entry& e : weights.entries())
    if (is_floating(e.tensor.type())) bytes[e.tensor.type()] += e.tensor.info().bytes();
  dtype most = dtype::f32;
  std::uint64_t count = 0;
  for (const auto& [type, sum] : bytes)
    if (sum > count) most = type, count = sum;
  return most;
}

/// Why a tensor that no parameter took is left out on purpose; empty: it is not.
inline std::string_view known_leftover(std::string_view name, bool text_encoder, const json_value& config) {
  if (!text_encoder) return {};
  if (name.ends_with("position_ids")) return "positions are counted in the graph";
  if (name == "logit_scale") return "only contrastive training uses it";
  const json_value* architectures = config.find("architectures");
  if (name == "text_projection.weight" && architectures && *architectures == json_value(json_value::array{"CLIPTextModel"}))
    return "a CLIPTextModel has no projection";
  return {};
}

/// Builds the graphs of a package one after the other.
class stable_diffusion_builder {
 public:
  stable_diffusion_builder(package source, const build_options& options, job& run)
      : source_(std::move(source)), options_(options), run_(run), xl_(source_.family.rfind("sdxl", 0) == 0) {
    io_ = options.io.xl_as_optimum && xl_ ? interface_optimum() : options.io;
    io_.io_float = options.io_float;
  }

  result<bundle> build() {
    TENSORSMITH_CHECK(check_options());
    for (const component& c : source_.components) {
      if (c.name == "vae") TENSORSMITH_CHECK(build_vae(c));
      else TENSORSMITH_CHECK(build_one(c));
    }
    std::vector<std::string> names;
    for (const bundle_component& c : out_.components) names.push_back(c.name);
    out_.index = onnx_pipeline_index(source_.index, io_, names);
    out_.source = std::move(source_.source);
    out_.family = std::move(source_.family);
    out_.side_files = std::move(source_.side_files);
    out_.findings = std::move(source_.findings);
    out_.notes = std::move(source_.notes);
    return std::move(out_);
  }

 private:
  result<void> check_options() const {
    const auto usable = [](dtype t) { return t == dtype::f32 || t == dtype::f16; };
    if (usable(io_.io_float) && (!options_.dtype || usable(*options_.dtype))) return {};
    return failure{.code = errc::usage, .what = "graphs compute and speak f32 or f16", .expected = "f32 or f16",
                   .found = std::string(name_of(usable(io_.io_float) ? *options_.dtype : io_.io_float))};
  }

  /// Floating tensors that are stored neither as most of them are nor as the graph computes.
  static std::size_t minority_types(const catalog& weights, dtype stored, dtype compute) {
    std::size_t count = 0;
    for (const catalog_entry& e : weights.entries())
      count += is_floating(e.tensor.type()) && e.tensor.type() != stored && e.tensor.type() != compute;
    return count;
  }

  /// What a component computes in: as asked, or as stored.
  dtype compute_of(const component& c) {
    const dtype stored = most_common_float(c.weights);
    dtype compute = options_.dtype.value_or(stored);
    if (compute != dtype::f32 && compute != dtype::f16) {
      run_.info(c.name, "its " + std::string(name_of(stored)) + " weights become f32, because ONNX runtimes compute in f32 or f16");
      compute = dtype::f32;
    }
    if (const std::size_t others = minority_types(c.weights, stored, compute); others != 0 && !options_.dtype)
      run_.info(c.name, std::to_string(others) + " tensors of other types than " + std::string(name_of(stored)) + " become " +
                            std::string(name_of(compute)));
    // force_upcast is about SDXL's autoencoder, whose activations overflow f16. diffusers' default is true, so re-saved SD 1 and 2
    // folders say so, too; their pipelines do not look at it, and nor do we.
    const json_value* upcast = c.config.find("force_upcast");
    if (c.name == "vae" && compute == dtype::f16 && xl_ && !(upcast && upcast->as_bool() && !*upcast->as_bool())) {
      run_.info(c.name, "it computes in f32, because its configuration says force_upcast: its activations overflow f16");
      compute = dtype::f32;
    }
    return compute;
  }

  arch_options options_of(const component& c) {
    arch_options out;
    out.compute = compute_of(c);
    out.component = c.name;
    out.overflow = options_.overflow, out.tally = options_.tally;
    out.last_state_but_one = xl_;
    if (c.name == "unet") out.text_embeds_width = text_embeds_width(c.config);
    return out;
  }

  /// Width of the pooled text states that the UNet reads: what the pipeline's encoder with a projection gives; else what the family's
  /// number of time ids leaves.
  std::optional<std::size_t> text_embeds_width(const json_value& unet) const {
    for (const char* name : {"text_encoder_2", "text_encoder"}) {
      const component* c = source_.find(name);
      if (c == nullptr) continue;
      const catalog_parameters parameters(c->weights, c->name, source_.source);
      const auto read = read_clip_text_config(c->config, c->name + "/config.json", parameters);
      if (read && read->with_projection) return read->projection;
    }
    const json_value *all = unet.find("projection_class_embeddings_input_dim"), *one = unet.find("addition_time_embed_dim");
    if (!xl_ || !all || !one || !all->as_integer() || !one->as_integer()) return std::nullopt;
    const std::int64_t ids = source_.family == "sdxl" ? 6 : 5, sum = *all->as_integer(), each = *one->as_integer();
    if (each < 1 || sum < 1 || each > sum / ids || sum - ids * each < 1) return std::nullopt;
    return static_cast<std::size_t>(sum - ids * each);
  }

  result<void> build_one(const component& c) {
    const bool text = c.name == "text_encoder" || c.name == "text_encoder_2";
    if (!text && c.name != "unet")
      return failure{.code = errc::unsupported, .what = "no architecture is known for component " + quoted(c.name), .file = source_.source,
                     .expected = "text_encoder, text_encoder_2, unet or vae"};
    catalog_parameters parameters(c.weights, c.name, source_.source);
    const arch_options options = options_of(c);
    TENSORSMITH_TRY(graph model, text ? build_clip_text(c.config, parameters, io_, options) : build_unet2d_condition(c.config, parameters, io_, options));
    TENSORSMITH_TRY(std::vector<std::string> ignored, account(c, parameters, text));
    return finish(c, c.name, std::move(model), std::move(ignored));
  }

  result<void> build_vae(const component& c) {
    catalog_parameters parameters(c.weights, c.name, source_.source);
    arch_options options = options_of(c);
    TENSORSMITH_TRY(graph decoder, build_vae_decoder(c.config, parameters, io_, options));
    if (io_.vae_encoder_in_f32) options.compute = dtype::f32;
    TENSORSMITH_TRY(graph encoder, build_vae_encoder(c.config, parameters, io_, options));
    TENSORSMITH_TRY(std::vector<std::string> ignored, account(c, parameters, false));
    TENSORSMITH_CHECK(finish(c, "vae_encoder", std::move(encoder), ignored));
    return finish(c, "vae_decoder", std::move(decoder), std::move(ignored));
  }

  /// What was left out on purpose. @fails mismatch if tensors remain that nothing explains
  result<std::vector<std::string>> account(const component& c, const catalog_parameters& parameters, bool text) const {
    std::vector<std::string> ignored = c.ignored;
    std::string first;
    std::size_t unexplained = 0;
    for (const catalog_entry* e : parameters.leftovers()) {
      const std::string_view why = known_leftover(e->name, text, c.config);
      if (!why.empty()) {
        ignored.push_back(e->name + ": " + std::string(why));
      } else if (unexplained++ < 5) {
        first += (first.empty() ? "" : ", ") + quoted(e->name) + " " + to_string(e->tensor.shape());
      }
    }
    if (unexplained == 0) return ignored;
    return failure{.code = errc::mismatch, .what = c.name + " has tensors that its configuration has no use for", .file = source_.source,
                   .expected = "every tensor used", .found = std::to_string(unexplained) + " unused: " + first + (unexplained > 5 ? ", …" : ""),
                   .advice = "check that config.json belongs to these weights"};
  }

  result<void> finish(const component& c, std::string name, graph model, std::vector<std::string> ignored) {
    TENSORSMITH_CHECK(verify(model));
    out_.components.push_back({std::move(name), std::move(model), c.config, std::move(ignored), c.name});
    return {};
  }

  package source_;
  const build_options& options_;
  job& run_;
  io_interface io_;
  bool xl_;
  bundle out_;
};

}  // namespace detail

/// Graphs of all components, in the order of the package; the autoencoder becomes vae_encoder and vae_decoder. Every weight ends as
/// used, ignored on purpose (listed in the component), or an error.
/// @fails malformed, unsupported (configurations), mismatch (weights), usage (options)
inline result<bundle> build_stable_diffusion(package source, const build_options& options, job& run) {
  return detail::stable_diffusion_builder(std::move(source), options, run).build();
}

TENSORSMITH_END_NAMESPACE
