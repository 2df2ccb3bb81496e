// SPDX-License-Identifier: MIT
//
// convert_weights/write.hpp: writes what was planned, in the form that was asked for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../common/weights_output.hpp"
#include "accounts.hpp"
#include "options.hpp"
#include "summary.hpp"
#include "tensorsmith/arch/checkpoint_names.hpp"
#include "tensorsmith/format/diffusers/write.hpp"
#include "tensorsmith/format/numpy/write.hpp"
#include "tensorsmith/format/safetensors/write.hpp"
#include "tensorsmith/format/safetensors/write_sharded.hpp"
#include "tensorsmith/format/torch/write.hpp"
#include "tensorsmith/tensor/joined.hpp"

namespace convert_weights {

inline std::string_view name_of(target to) {
  constexpr std::string_view names[] = {"safetensors", "torch", "diffusers", "checkpoint", "npz"};
  return names[static_cast<std::size_t>(to)];
}

/// Writes one model; each form plans everything first, so that a dry run says what a real one does.
class output_writing {
 public:
  output_writing(const options& o, const ts::package& model, ts::job& run, summary& report)
      : o_(o), model_(model), run_(run), report_(report) {}

  /// @fails as the writers of the formats; denied (OUTPUT is one of the files that are read)
  ts::result<void> write(target to) {
    TENSORSMITH_CHECK(check_output());
    if (to == target::diffusers) return write_folder();
    if (to == target::checkpoint) return write_checkpoint();
    TENSORSMITH_TRY(const ts::catalog tensors, whole_catalog());
    report_.components = amounts_of(model_);
    if (to == target::torch) return write_torch(tensors, examples::torch_nesting(model_), model_.scalars);
    if (to == target::npz) return write_npz(tensors);
    return o_.shard_size != 0 ? write_shards(tensors) : write_safetensors(tensors, model_.metadata);
  }

 private:
  /// The source is read until the output is published: a shard or a component's file must not be the output. The file that is SOURCE itself
  /// may be: it is replaced when all of it was read.
  ts::result<void> check_output() const {
    if (!ts::os::exists(o_.output) || examples::same_place(o_.source, o_.output)) return {};
    const auto refuse = [&](const std::string& file) {
      return ts::failure{.code = ts::errc::denied, .what = "the output would replace a file that is read", .file = o_.output,
                         .found = ts::quoted(file), .advice = "choose another output path"};
    };
    std::string last;
    for (const ts::component& part : model_.components)
      for (const ts::catalog_entry& entry : part.weights.entries()) {
        const auto stored = entry.tensor.source->stored();
        std::string file = stored ? stored->source->name() : entry.origin.substr(0, entry.origin.find(": "));
        if (file == last) continue;
        last = std::move(file);
        if (examples::same_place(last, o_.output) || (ts::os::is_folder(o_.output) && examples::lies_within(last, o_.output))) return refuse(last);
      }
    return {};
  }

  static std::vector<examples::amounts> amounts_of(const ts::package& model) {
    std::vector<examples::amounts> out;
    for (const ts::component& part : model.components) {
      examples::amounts& sum = out.emplace_back();
      sum.name = part.name;
      for (const ts::catalog_entry& entry : part.weights.entries()) sum.add(entry.tensor.info());
    }
    return out;
  }

  /// All tensors in one catalog; those of named components as "component.name". @fails mismatch (two get one name)
  ts::result<ts::catalog> whole_catalog() {
    if (!model_.is_single_model())
      run_.info({}, "the tensors of several components are named 'component.tensor' in one file");
    return ts::joined_catalog(model_);
  }

  examples::output_options writing() const { return {o_.force, o_.verify, o_.dry_run}; }

  ts::result<void> write_safetensors(const ts::catalog& tensors, const ts::safetensors_metadata& metadata) {
    examples::note_lost_scalars(model_.scalars, "a safetensors file", run_);
    return examples::write_safetensors_output(tensors, o_.output, metadata, writing(), run_, report_);
  }

  /// With --shard-size: a folder of files; one file if OUTPUT is called like one and the tensors fit into it.
  ts::result<void> write_shards(const ts::catalog& tensors) {
    ts::sharded_write_options how;
    how.max_shard_bytes = o_.shard_size;
    how.metadata = examples::with_format(model_.metadata);
    how.force = o_.force;
    how.verify = o_.verify;
    how.sources = {o_.source};
    TENSORSMITH_TRY(const auto plan, ts::plan_sharded_safetensors(tensors, {how.stem, how.variant, how.max_shard_bytes}, how.metadata, run_.limits));
    if (ts::ends_with_ignoring_case(o_.output, ".safetensors")) {
      if (plan.files.size() == 1) return write_safetensors(tensors, model_.metadata);
      return usage_error("the tensors need " + std::to_string(plan.files.size()) + " shards, and OUTPUT is called like one file",
                         "name a folder, or raise --shard-size");
    }
    examples::note_lost_scalars(model_.scalars, "a safetensors file", run_);
    for (std::size_t k = 0; k < plan.files.size(); ++k) report_.files.push_back({ts::join_path(o_.output, plan.names[k]), plan.files[k].size});
    if (!plan.index_name.empty()) report_.files.push_back({ts::join_path(o_.output, plan.index_name), plan.index_text.size()});
    TENSORSMITH_TRY(const bool now, examples::go_on(o_.output, writing()));
    if (now) TENSORSMITH_CHECK(ts::write_safetensors_sharded(tensors, o_.output, how, run_));
    return {};
  }

  ts::result<void> write_torch(const ts::catalog& tensors, const std::string& nested, const examples::torch_scalars& scalars) {
    examples::note_lost_metadata(model_.metadata, "torch", run_);
    return examples::write_torch_output(tensors, o_.output, nested, scalars, writing(), run_, report_);
  }

  ts::result<void> write_npz(const ts::catalog& tensors) {
    examples::note_lost_metadata(model_.metadata, "npz", run_);
    examples::note_lost_scalars(model_.scalars, "an npz file", run_);
    TENSORSMITH_TRY(const ts::npz_layout plan, ts::npz_layout::plan(tensors));
    report_.files = {{o_.output, plan.file_bytes()}};
    TENSORSMITH_TRY(const bool now, examples::go_on(o_.output, writing()));
    if (now) TENSORSMITH_CHECK(ts::write_npz(tensors, o_.output, run_, {.force = o_.force, .verify = o_.verify}));
    return {};
  }

  /// The single file that the original code reads: a torch file if OUTPUT is called like one, else safetensors.
  ts::result<void> write_checkpoint() {
    const inventory before(model_);
    TENSORSMITH_TRY(const ts::single_file_checkpoint made, ts::make_checkpoint(model_, run_));
    for (ts::ignored_tensor& tensor : before.named(made.ignored)) report_.ignored.push_back(std::move(tensor));
    examples::amounts& sum = report_.components.emplace_back();
    for (const ts::catalog_entry& entry : made.tensors.entries()) sum.add(entry.tensor.info());
    for (const std::string_view ending : {".ckpt", ".pt", ".pth", ".bin"}) {
      if (!ts::ends_with_ignoring_case(o_.output, ending)) continue;
      examples::torch_scalars scalars;
      if (made.global_step) scalars.emplace_back("global_step", *made.global_step);
      return write_torch(made.tensors, "state_dict", scalars);
    }
    return write_safetensors(made.tensors, made.metadata);
  }

  ts::result<void> write_folder() {
    report_.components = amounts_of(model_);
    ts::diffusers_write_options options;
    options.max_shard_bytes = o_.shard_size;
    options.variant = o_.output_variant;
    return examples::write_folder_output(model_, o_.output, std::move(options), writing(), run_, report_);
  }

  const options& o_;
  const ts::package& model_;
  ts::job& run_;
  summary& report_;
};

}  // namespace convert_weights
