// SPDX-License-Identifier: MIT
//
// merge_lora/combine.hpp: adapters into one adapter: --mode concat, svd, lpl, ljl and kohya.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../common/adapter_options.hpp"
#include "../common/adapter_report.hpp"
#include "../common/cast_options.hpp"
#include "../common/paths.hpp"
#include "../common/weights_output.hpp"
#include "options.hpp"
#include "tensorsmith/arch/combine_adapters.hpp"
#include "tensorsmith/format/diffusers/read.hpp"

namespace merge_lora {

/// What is reported about a combination.
struct combination : examples::run_report {
  std::string mode, form;
  ts::combined_adapter made;
  std::vector<std::pair<double, double>> strengths;  // of each adapter: UNet, text encoders
  std::vector<ts::combine_source> inputs;             // their tensors are read until the output is written
};

/// The modes that give an adapter; "auto" is one if BASE is an adapter.
inline std::optional<ts::combine_mode> combine_mode_of(const options& o) {
  for (const ts::combine_mode mode :
       {ts::combine_mode::concat, ts::combine_mode::svd, ts::combine_mode::lpl, ts::combine_mode::ljl, ts::combine_mode::kohya})
    if (o.mode == ts::name_of(mode)) return mode;
  return std::nullopt;
}

/// True for files and folders of adapters. What cannot be opened is none: merging into it says why.
inline bool is_adapter(const std::string& text, const ts::limits& limits) {
  const auto argument = examples::parse_lora(text);
  if (!argument) return false;
  const std::string& path = argument->file;
  ts::job quiet;
  quiet.limits = limits;
  if (ts::os::is_folder(path)) return !ts::is_diffusers_folder(path) && ts::open_adapter(path, quiet).has_value();
  const auto file = ts::open_weights(path, {}, quiet);
  if (!file || file->components.size() != 1) return false;
  const auto what = ts::recognize_adapter(file->components[0].weights);
  return what && what->family != ts::adapter_family::textual_inversion && what->family != ts::adapter_family::hypernetwork;
}

/// Whether this command line combines adapters. @fails usage (options that do not go together)
inline ts::result<bool> wants_combination(const options& o) {
  const bool named = combine_mode_of(o).has_value();
  if (!named && o.output.empty()) return usage_error("OUTPUT is missing", "pass BASE OUTPUT");
  const bool combining = named || (o.mode == "auto" && is_adapter(o.base, o.limits));
  if (o.rank != 0 && o.mode != "svd") return usage_error("--rank is for --mode svd", "pass --mode svd, or drop --rank");
  if (o.conv_rank != 0 && o.mode != "svd") return usage_error("--conv-rank is for --mode svd", "pass --mode svd, or drop --conv-rank");
  if (o.mode == "svd" && o.rank == 0) return usage_error("--mode svd needs the rank of the result", "pass --rank N");
  if (!combining && o.mode != "auto" && is_adapter(o.base, o.limits))
    return usage_error("--mode " + o.mode + " merges into a model, and BASE is an adapter", "pass a model as BASE, or --mode concat");
  if (!combining && o.adapters.loras.empty()) return usage_error("--lora is missing", "pass --lora FILE:STRENGTH");
  return combining;
}

/// The adapters, each with what its file says about itself. @fails usage, and as the readers
inline ts::result<std::vector<ts::combine_source>> open_sources(const examples::adapter_options& o, combination& report, ts::job& run) {
  TENSORSMITH_TRY(examples::opened_adapters opened, examples::open_adapters(o, {}, run));  // no model: its layers are looked up in all of them
  report.strengths = std::move(opened.strengths);
  std::vector<ts::combine_source> out;
  for (std::size_t i = 0; i < opened.requests.size(); ++i) {
    ts::combine_source& one = out.emplace_back(ts::combine_source{std::move(opened.requests[i])});
    TENSORSMITH_TRY(const examples::lora_argument argument, examples::parse_lora(o.loras[i]));
    if (ts::os::is_folder(argument.file)) continue;
    ts::job quiet;  // what there is to say was said when the adapter was opened
    quiet.limits = run.limits;
    TENSORSMITH_TRY(ts::package file, ts::open_weights(argument.file, {}, quiet));
    one.metadata = std::move(file.metadata);
  }
  return out;
}

/// Combines adapters. @fails as open_adapter, combine_adapters and the writers
inline ts::result<combination> combine(const options& o, ts::job& run) {
  combination report;
  examples::adapter_options adapters = o.adapters;
  report.output = o.output.empty() ? o.base : o.output;
  if (!o.output.empty()) adapters.loras.insert(adapters.loras.begin(), o.base);
  if (adapters.loras.empty()) return usage_error("there is no adapter to combine", "pass --lora FILE:STRENGTH");
  report.dry_run = o.dry_run;
  TENSORSMITH_CHECK(examples::check_run_options(o));
  TENSORSMITH_CHECK(examples::check_adapter_options(adapters));
  const std::vector<std::string> files = examples::files_of(adapters);
  TENSORSMITH_CHECK(examples::check_base_output(files[0], report.output, o.force, o.report, files));
  for (const std::string& text : adapters.loras) {
    TENSORSMITH_TRY(const examples::lora_argument argument, examples::parse_lora(text));
    report.source += (report.source.empty() ? "" : ", ") + argument.file;
  }
  ts::combine_options how{.mode = combine_mode_of(o).value_or(ts::combine_mode::concat), .rank = o.rank, .conv_rank = o.conv_rank,
                          .to = examples::dtype_of(o.cast), .overflow = examples::overflow_of(o.cast), .strict = o.adapters.strict};
  report.mode = ts::name_of(how.mode);
  TENSORSMITH_TRY(report.inputs, open_sources(adapters, report, run));
  for (const ts::combine_source& source : report.inputs)
    if (source.request.source.modules.empty())
      return ts::failure{.code = ts::errc::mismatch, .what = "the adapter has no modules", .file = source.request.source.file};
  TENSORSMITH_TRY(report.made, ts::combine_adapters(report.inputs, how, run));
  report.planned_memory = report.made.largest_memory;

  const examples::output_options written{o.force, o.verify, o.dry_run};
  constexpr std::string_view torch_endings[] = {".pt", ".pth", ".bin", ".ckpt"};
  const bool torch = std::find(std::begin(torch_endings), std::end(torch_endings), ts::extension(report.output)) != std::end(torch_endings);
  report.form = torch ? "torch" : "safetensors";
  if (torch) {
    examples::note_lost_metadata(report.made.metadata, "torch", run);
    TENSORSMITH_CHECK(examples::write_torch_output(report.made.tensors, report.output, {}, {}, written, run, report));
  } else {
    TENSORSMITH_CHECK(examples::write_safetensors_output(report.made.tensors, report.output, report.made.metadata, written, run, report));
  }
  return report;
}

/// The layers whose truncation lost most, first, by its share of the whole.
inline std::vector<std::pair<double, const ts::combined_layer*>> largest_losses(const combination& c, std::size_t most) {
  std::vector<std::pair<double, const ts::combined_layer*>> out;
  for (const ts::combined_layer& layer : c.made.layers)
    if (layer.svd) {
      const ts::truncation kept = layer.svd->kept();
      out.emplace_back(kept.whole > 0 ? kept.lost / kept.whole : 0.0, &layer);
    }
  std::stable_sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  out.resize(std::min(out.size(), most));
  return out;
}

inline std::string to_text(const combination& c) {
  std::string out = (c.dry_run ? "Plan: " : "Combined ") + examples::counted(c.inputs.size(), "adapter") + " by " + c.mode + ", " + c.output +
                    " (" + c.form + ")\n";
  for (std::size_t i = 0; i < c.made.sources.size(); ++i) out += examples::detail::adapter_text(c.made.sources[i], c.strengths[i]);
  out += "  " + examples::counted(c.made.layers.size(), "layer") + ", " + examples::counted(c.made.tensors.size(), "tensor") + '\n';
  for (const std::string& name : c.made.embeddings) out += "  embedding " + name + '\n';
  if (!c.dry_run)
    for (const auto& [share, layer] : largest_losses(c, 3))
      out += "  " + layer->name + ": rank " + std::to_string(layer->rank) + " leaves out " + examples::number_text(100 * share) +
             " % (Frobenius norm)\n";
  return out + examples::ending_text(c);
}

inline ts::json_value to_json(const combination& c) {
  ts::json_value out;
  out.set("status", c.dry_run ? "planned" : "combined");
  for (const auto& [key, text] :
       {std::pair("source", &c.source), std::pair("output", &c.output), std::pair("form", &c.form), std::pair("mode", &c.mode)})
    out.set(key, *text);
  ts::json_value::array adapters;
  for (std::size_t i = 0; i < c.made.sources.size(); ++i) {
    ts::json_value one;
    examples::detail::set_adapter(one, c.made.sources[i], c.strengths[i], examples::keys_of(c.inputs[i].request.source, c.made.sources[i]));
    adapters.push_back(std::move(one));
  }
  out.set("adapters", std::move(adapters));
  out.set("layers", examples::json_list(c.made.layers, [&](ts::json_value& one, const ts::combined_layer& layer) {
            one.set("name", layer.name);
            one.set("algorithm", layer.algorithm);
            one.set("adapters", std::uint64_t{layer.sources});
            if (layer.rank != 0) one.set("rank", std::uint64_t{layer.rank}), one.set("alpha", layer.alpha);
            if (!layer.svd || c.dry_run) return;
            one.set("change", layer.svd->kept().whole);
            one.set("lost", layer.svd->kept().lost);
          }));
  out.set("embeddings", examples::json_of(c.made.embeddings));
  out.set("tensors", std::uint64_t{c.made.tensors.size()});
  examples::set_ending(out, c);
  return out;
}

}  // namespace merge_lora
