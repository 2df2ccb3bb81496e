// SPDX-License-Identifier: MIT
//
// merge_lora/merge.hpp: the merge itself: open base and adapters, plan every change, write in the form of the base.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "options.hpp"
#include "summary.hpp"
#include "tensorsmith/arch/block_weights.hpp"
#include "tensorsmith/arch/stable_diffusion_open.hpp"
#include "tensorsmith/arch/update_checkpoint.hpp"
#include "tensorsmith/format/checkpoint/open.hpp"
#include "tensorsmith/format/diffusers/write.hpp"
#include "tensorsmith/format/safetensors/write.hpp"
#include "tensorsmith/format/torch/write.hpp"
#include "tensorsmith/io/file.hpp"

namespace merge_lora {

/// The adapters of the command line, each with what it is. @fails as the readers, read_adapter and parse_lora
inline ts::result<std::vector<ts::adapter_request>> open_adapters(const options& o, const ts::package& model, ts::job& run, summary& report) {
  std::optional<ts::block_weights> blocks;
  if (!o.block_weights.empty()) {
    TENSORSMITH_TRY(const std::vector<double> list, parse_numbers(o.block_weights));
    TENSORSMITH_TRY(blocks, ts::block_weights::from(list));
  }
  ts::unet_name_layout layout;
  if (const ts::component* unet = model.find("unet")) {
    std::vector<std::string_view> names;
    for (const ts::catalog_entry& entry : unet->weights.entries()) names.push_back(entry.name);
    layout = ts::unet_layout_of_diffusers(names);
  }
  std::vector<ts::adapter_request> out;
  for (const std::string& text : o.loras) {
    TENSORSMITH_TRY(const lora_argument argument, parse_lora(text));
    TENSORSMITH_TRY(ts::package file, ts::open_weights(argument.file, {}, run));
    if (file.components.size() != 1 || !file.components[0].name.empty())
      return ts::failure{.code = ts::errc::unsupported, .what = "the file is no adapter", .file = argument.file, .expected = "one file of an adapter",
                         .found = "a pipeline"};
    TENSORSMITH_TRY(ts::adapter source, ts::read_adapter(std::move(file.components[0].weights), argument.file));
    ts::adapter_request request{.source = std::move(source)};
    request.unet = argument.unet;
    request.text_encoder = argument.text_encoder * (blocks ? blocks->text_encoder() : 1.0);
    request.how.dora = dora_of(o);
    if (blocks) request.block_weight = [blocks = *blocks, layout](std::string_view module) { return blocks.of_diffusers(module, layout); };
    report.strengths.emplace_back(request.unet, request.text_encoder);
    out.push_back(std::move(request));
  }
  return out;
}

/// Casts floating-point tensors of a catalog. @fails unsupported
inline ts::result<void> cast_catalog(ts::catalog& tensors, const options& o) {
  if (o.dtype == "keep") return {};
  const ts::dtype to = o.dtype == "f32" ? ts::dtype::f32 : o.dtype == "f16" ? ts::dtype::f16 : ts::dtype::bf16;
  for (const ts::catalog_entry& entry : tensors.entries()) {
    if (!ts::is_floating(entry.tensor.type()) || entry.tensor.type() == to) continue;
    TENSORSMITH_TRY(ts::tensor_ref other, ts::cast(entry.tensor, to, overflow_of(o)));
    tensors.replace(entry.name, std::move(other));
  }
  return {};
}

/// Writes a file in the container of the base.
inline ts::result<void> write_file(const options& o, const ts::package& source, const ts::catalog& tensors, ts::job& run, summary& report) {
  report.tensors = tensors.size();
  if (source.container.starts_with("torch")) {
    report.form = "torch";
    const ts::torch_write_options how{.nested = source.nested == "state_dict" ? source.nested : std::string(),
                                      .scalars = source.nested == "state_dict" ? source.scalars : decltype(source.scalars){}, .force = o.force, .verify = o.verify};
    TENSORSMITH_TRY(const ts::torch_layout plan, ts::torch_layout::plan(tensors, how));
    report.files = {{o.output, plan.file_bytes()}};
    if (!o.dry_run) TENSORSMITH_CHECK(ts::write_torch(tensors, o.output, run, how));
    return {};
  }
  report.form = "safetensors";
  ts::safetensors_write_options how{.metadata = source.metadata, .force = o.force, .verify = o.verify};
  if (std::none_of(how.metadata.begin(), how.metadata.end(), [](const auto& pair) { return pair.first == "format"; })) how.metadata.emplace_back("format", "pt");
  TENSORSMITH_TRY(const ts::safetensors_plan plan, ts::plan_safetensors(tensors, how.metadata, run.limits));
  report.files = {{o.output, plan.size}};
  if (!o.dry_run) TENSORSMITH_CHECK(ts::write_safetensors(tensors, o.output, how, run));
  return {};
}

inline ts::result<void> write_folder(const options& o, ts::package& model, ts::job& run, summary& report) {
  report.form = "diffusers folder";
  for (ts::component& part : model.components) {
    TENSORSMITH_CHECK(cast_catalog(part.weights, o));
    report.tensors += part.weights.size();
  }
  ts::diffusers_write_options how;
  how.force = o.force, how.verify = o.verify, how.dry_run = o.dry_run;
  TENSORSMITH_TRY(const ts::write_report written, ts::write_diffusers_folder(model, o.output, how, run));
  for (const ts::component_report& part : written.components)
    for (const ts::written_file& file : part.files) report.files.push_back({ts::join_path(o.output, file.path), file.bytes});
  for (const ts::written_file& file : written.other_files) report.files.push_back({ts::join_path(o.output, file.path), file.bytes});
  report.planned_memory = written.peak_memory_bytes;
  return {};
}

/// @fails path
inline ts::result<void> check_output(const options& o) {
  if (o.force && examples::same_place(o.base, o.output) && ts::os::is_folder(o.base)) return usage_error("OUTPUT is BASE", "choose another OUTPUT");
  if (ts::os::is_folder(o.output) && examples::lies_within(o.base, o.output)) return usage_error("BASE lies inside OUTPUT, which would be replaced", "choose another OUTPUT");
  if (o.force || !ts::os::exists(o.output, false)) return {};
  return ts::failure{.code = ts::errc::path, .what = "the output already exists", .file = o.output, .advice = "pass --force to replace it, or choose another path"};
}

inline ts::result<summary> merge(const options& o, ts::job& run) {
  summary report;
  report.source = o.base, report.output = o.output, report.dry_run = o.dry_run;
  TENSORSMITH_CHECK(examples::check_run_options(o));
  TENSORSMITH_CHECK(check_output(o));
  TENSORSMITH_TRY(ts::package source, ts::open_weights(o.base, {}, run));
  const bool single = source.components.size() == 1 && source.components[0].name.empty();
  ts::open_options opening;
  opening.model = o.model;
  const std::size_t said = run.notes.size();
  TENSORSMITH_TRY(ts::package model, ts::recognize_stable_diffusion(source, opening, run));
  if (single)  // a file has no place for the files of a pipeline: what is said about them is of no use
    run.notes.erase(std::remove_if(run.notes.begin() + static_cast<std::ptrdiff_t>(said), run.notes.end(), [](const ts::note& n) { return n.subject == "tokenizer"; }),
                    run.notes.end());
  report.family = model.family;
  report.findings = model.findings;
  TENSORSMITH_TRY(const std::vector<ts::adapter_request> adapters, open_adapters(o, model, run, report));
  TENSORSMITH_TRY(report.account, ts::merge_adapters(model, adapters, {.strict = o.strict, .overflow = overflow_of(o)}, run));
  if (!single) {
    TENSORSMITH_CHECK(write_folder(o, model, run, report));
    return report;
  }
  std::vector<ts::changed_weight> changed;
  for (const ts::merged_weight& weight : report.account.weights) changed.push_back({weight.component, weight.name});
  TENSORSMITH_TRY(ts::catalog tensors, ts::update_checkpoint(source.components[0].weights, model, changed, run));
  TENSORSMITH_CHECK(cast_catalog(tensors, o));
  TENSORSMITH_CHECK(write_file(o, source, tensors, run, report));
  return report;
}

/// The report as a file of its own. @fails io, path
inline ts::result<void> write_report_file(const options& o, const summary& report) {
  if (o.report.empty()) return {};
  const std::string text = ts::write_json(to_json(report)) + '\n';
  TENSORSMITH_TRY(auto publication, ts::file_publication::begin(o.report, {.force = true}));
  TENSORSMITH_TRY(const auto file, publication.create(text.size()));
  TENSORSMITH_CHECK(file->write_at(0, std::as_bytes(std::span(text))));
  return publication.commit();
}

}  // namespace merge_lora
