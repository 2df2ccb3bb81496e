// SPDX-License-Identifier: MIT
//
// common/weights_output.hpp: one file or one folder of weights as output: planned first, so that a dry run says what a real one does.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "report.hpp"
#include "tensorsmith/format/diffusers/write.hpp"
#include "tensorsmith/format/safetensors/write.hpp"
#include "tensorsmith/format/torch/write.hpp"
#include "tensorsmith/io/os.hpp"
#include "tensorsmith/io/path.hpp"

namespace examples {

/// How an output is written.
struct output_options {
  bool force = false, verify = false, dry_run = false;
};

/// The numbers and texts beside the tensors of a torch file.
using torch_scalars = std::vector<std::pair<std::string, ts::json_value>>;

/// A path that is taken is refused before anything is read. @fails path
inline ts::result<void> check_absent(const std::string& path, bool force) {
  if (force || !ts::os::exists(path, false)) return {};
  return ts::failure{.code = ts::errc::path, .what = "the output already exists", .file = path,
                      .advice = "pass --force to replace it, or choose another path"};
}

/// Asked when all is planned: whether to write it. A dry run ends here, with what the writers would refuse. @fails path
inline ts::result<bool> go_on(const std::string& path, const output_options& how) {
  if (!how.dry_run) return true;
  TENSORSMITH_CHECK(check_absent(path, how.force));
  return false;
}

/// The metadata of a safetensors file: the source's, and "format": "pt", without which transformers refuses a file.
inline ts::safetensors_metadata with_format(ts::safetensors_metadata metadata) {
  const auto is_format = [](const auto& pair) { return pair.first == "format"; };
  if (std::none_of(metadata.begin(), metadata.end(), is_format)) metadata.emplace_back("format", "pt");
  return metadata;
}

inline void note_lost_metadata(const ts::safetensors_metadata& metadata, std::string_view format, ts::job& run) {
  std::size_t count = 0;
  for (const auto& [key, value] : metadata) count += key != "format";
  if (count == 0) return;
  run.info("metadata", std::to_string(count) + (count == 1 ? " entry has" : " entries have") + " no place in a " + std::string(format) + " file");
}

/// `place`: "a safetensors file".
inline void note_lost_scalars(const torch_scalars& scalars, std::string_view place, ts::job& run) {
  if (scalars.empty()) return;
  run.info("values", "the source keeps " + ts::quoted(scalars[0].first) + (scalars.size() > 1 ? " and others" : "") + " beside its tensors; " +
                         (scalars.size() > 1 ? "they have" : "it has") + " no place in " + std::string(place));
}

/// One safetensors file. @fails as plan_safetensors and write_safetensors
inline ts::result<void> write_safetensors_output(const ts::catalog& tensors, const std::string& path, const ts::safetensors_metadata& metadata,
                                                 const output_options& how, ts::job& run, run_report& report) {
  const ts::safetensors_write_options options{.metadata = with_format(metadata), .force = how.force, .verify = how.verify};
  TENSORSMITH_TRY(const ts::safetensors_plan plan, ts::plan_safetensors(tensors, options.metadata, run.limits));
  report.files = {{path, plan.size}};
  TENSORSMITH_TRY(const bool now, go_on(path, how));
  if (now) TENSORSMITH_CHECK(ts::write_safetensors(tensors, path, options, run));
  return {};
}

/// One torch file. `nested`: the dict that holds the tensors; without one the scalars have no place. @fails as write_torch
inline ts::result<void> write_torch_output(const ts::catalog& tensors, const std::string& path, const std::string& nested,
                                           const torch_scalars& scalars, const output_options& how, ts::job& run, run_report& report) {
  ts::torch_write_options options{.nested = nested, .scalars = {}, .force = how.force, .verify = how.verify};
  if (!nested.empty()) options.scalars = scalars;
  else note_lost_scalars(scalars, "a plain state dict", run);
  TENSORSMITH_TRY(const ts::torch_layout plan, ts::torch_layout::plan(tensors, options));
  report.files = {{path, plan.file_bytes()}};
  TENSORSMITH_TRY(const bool now, go_on(path, how));
  if (now) TENSORSMITH_CHECK(ts::write_torch(tensors, path, run, options));
  return {};
}

/// The dict of a torch file that is written: a Lightning checkpoint stays one.
inline std::string torch_nesting(const ts::package& source) { return source.nested == "state_dict" ? source.nested : std::string(); }

inline void add_files(const ts::write_report& written, const std::string& folder, run_report& report) {
  const auto add = [&](const std::vector<ts::written_file>& files) {
    for (const ts::written_file& file : files) report.files.push_back({ts::join_path(folder, file.path), file.bytes, file.linked});
  };
  for (const ts::component_report& part : written.components) add(part.files);
  add(written.other_files);
  report.planned_memory = written.peak_memory_bytes;
}

/// A diffusers folder. `options` says variant and shards. @fails as write_diffusers_folder
inline ts::result<void> write_folder_output(const ts::package& model, const std::string& path, ts::diffusers_write_options options,
                                            const output_options& how, ts::job& run, run_report& report) {
  options.force = how.force, options.verify = how.verify, options.dry_run = true;
  const std::size_t notes = run.notes.size();
  TENSORSMITH_TRY(const ts::write_report plan, ts::write_diffusers_folder(model, path, options, run));
  add_files(plan, path, report);
  TENSORSMITH_TRY(const bool now, go_on(path, how));
  if (!now) return {};
  run.notes.resize(notes);  // the writer says them again
  options.dry_run = false;
  TENSORSMITH_CHECK(ts::write_diffusers_folder(model, path, options, run));
  return {};
}

}  // namespace examples
