// SPDX-License-Identifier: MIT
//
// sd_to_onnx/convert.hpp: the conversion itself: open, build, lower, write, with what is checked in between.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "options.hpp"
#include "summary.hpp"
#include "tensorsmith/arch/interface.hpp"
#include "tensorsmith/arch/stable_diffusion_build.hpp"
#include "tensorsmith/arch/stable_diffusion_open.hpp"
#include "tensorsmith/format/onnx/write.hpp"
#include "tensorsmith/target/ort.hpp"

namespace sd_to_onnx {

namespace ts = tensorsmith;

inline ts::io_interface interface_of(const options& o) {
  return o.layout == "diffusers" ? ts::interface_diffusers() : o.layout == "onnx-web" ? ts::interface_onnx_web() : ts::interface_optimum();
}

inline ts::open_options opening(const options& o) {
  ts::open_options out = examples::opening_of(o);
  out.vae = o.vae;
  out.image_size = o.image_size;
  out.components = o.components;
  return out;
}

/// The floating type that holds most bytes of the weights.
inline ts::dtype stored_dtype(const ts::package& model) {
  std::map<ts::dtype, std::uint64_t> bytes;
  for (const ts::component& c : model.components)
    for (const ts::catalog_entry& e : c.weights.entries())
      if (ts::is_floating(e.tensor.type())) bytes[e.tensor.type()] += e.tensor.info().bytes();
  ts::dtype most = ts::dtype::f32;
  for (const auto& [type, count] : bytes)
    if (count > bytes[most]) most = type;
  return most;
}

/// What the graphs compute in: as asked, or else as stored (the other floating types become f32).
inline ts::dtype compute_dtype(const options& o, ts::dtype stored) {
  return o.dtype == "f16" || (o.dtype == "keep" && stored == ts::dtype::f16) ? ts::dtype::f16 : ts::dtype::f32;
}

/// What can only be refused once the weights' type is known.
inline ts::result<void> check_against_source(const options& o, ts::dtype stored) {
  if (o.io == "f16" && compute_dtype(o, stored) != ts::dtype::f16)
    return ts::failure{.code = ts::errc::usage, .what = "--io f16 needs a model that computes in f16", .file = o.source,
                       .expected = "weights in f16 or --dtype f16", .found = std::string(ts::name_of(stored)) + " weights",
                       .advice = "pass --dtype f16 or drop --io"};
  if (o.weights == "in-place" && o.dtype != "keep" && o.dtype != ts::name_of(stored))
    return ts::failure{.code = ts::errc::usage, .what = "--weights in-place refers to the stored bytes and cannot convert them",
                       .file = o.source, .expected = "--dtype keep", .found = "--dtype " + o.dtype + " and weights in " + std::string(ts::name_of(stored)),
                       .advice = "drop one of the two options"};
  return {};
}

/// The files that were written, or would be.
inline void add_files(const ts::write_report& written, summary& report) {
  const auto add = [&](const std::vector<ts::written_file>& files) {
    for (const ts::written_file& file : files) report.files.push_back({file.path, file.bytes, file.linked});
  };
  for (const ts::component_report& part : written.components) add(part.files);
  add(written.other_files);
  report.planned_memory = written.peak_memory_bytes;
}

/// Called when the graphs are planned and nothing is written yet.
using planned_callback = std::function<void(const summary&)>;

inline ts::result<summary> convert(const options& o, ts::job& run, const planned_callback& planned) {
  summary report;
  report.source = o.source;
  report.output = o.output;
  report.layout = o.layout;
  report.weights = o.weights;
  report.dry_run = o.dry_run;
  TENSORSMITH_TRY(ts::package model, ts::open_stable_diffusion(o.source, opening(o), run));
  const ts::dtype stored = stored_dtype(model);
  TENSORSMITH_CHECK(check_against_source(o, stored));

  TENSORSMITH_TRY(report.merged, examples::apply_merges(model, o.adapters, o.embeddings, {examples::dtype_of(o), examples::overflow_of(o)}, run));

  ts::build_options building{.io = interface_of(o)};
  building.dtype = examples::dtype_of(o);
  building.overflow = examples::overflow_of(o);
  building.tally = std::make_shared<ts::cast_tally>();
  building.io_float = o.io == "f16" ? ts::dtype::f16 : ts::dtype::f32;
  TENSORSMITH_TRY(ts::bundle graphs, ts::build_stable_diffusion(std::move(model), building, run));
  TENSORSMITH_TRY(graphs, ts::lower_to_ort(std::move(graphs), {.opset = o.opset, .keep_stored_weights = o.weights == "in-place"}, run));

  report.family = graphs.family;
  report.opset = graphs.opset;
  report.compute = ts::name_of(compute_dtype(o, stored));
  report.findings = graphs.findings;
  for (const ts::bundle_component& part : graphs.components) report.components.push_back(summarize(part));
  planned(report);

  const ts::onnx_write_options writing{
      .weights = o.weights == "copy" ? ts::weights_mode::copy : o.weights == "embed" ? ts::weights_mode::embed : ts::weights_mode::in_place,
      .data_name = o.layout == "diffusers" ? "weights.pb" : "model.onnx_data",
      .force = o.force};
  auto written = o.dry_run ? ts::plan_onnx_folder(graphs, o.output, writing, run) : ts::write_onnx_folder(graphs, o.output, writing, run);
  if (!written) {
    if (written.error().code == ts::errc::numeric) written.error().advice = "convert to f32, or accept it with --overflow saturate";
    return std::move(written).error();
  }
  examples::warn_of_overflow(o, building.tally->overflowed, run);
  examples::warn_of_overflow(o, overflowed(report.merged.adapters), run, "merge");
  add_files(*written, report);
  return report;
}

}  // namespace sd_to_onnx
