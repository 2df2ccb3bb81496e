// SPDX-License-Identifier: MIT
//
// merge_lora/upl.hpp: what cloneofsimo's lora_add does to a pipeline: --mode upl into a diffusers folder, --mode upl-ckpt-v2 into a checkpoint with
// a file of tokens.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../common/base_model.hpp"
#include "../common/merges.hpp"
#include "merge.hpp"
#include "options.hpp"
#include "summary.hpp"
#include "tensorsmith/arch/checkpoint_names.hpp"
#include "tensorsmith/tensor/stacked.hpp"

namespace merge_lora {

inline bool is_upl(const options& o) { return o.mode == "upl" || o.mode == "upl-ckpt-v2"; }

/// The vectors of all tokens that adapters bring along, in the order of their names, one below the other, in f32; empty: none.
/// @fails unsupported (vectors for two text encoders, which the form of the file has no place for), mismatch (widths)
inline ts::result<ts::tensor_ref> stacked_tokens(const examples::opened_adapters& adapters, std::size_t& tokens, ts::job& run) {
  std::vector<const ts::textual_inversion*> all;
  std::set<std::string> known;
  for (const ts::adapter_request& request : adapters.requests)
    for (const ts::textual_inversion& one : request.source.embeddings) {
      if (known.insert(one.name).second) all.push_back(&one);
      else run.warn(one.file, "the embedding " + ts::quoted(one.name) + " is left out: an adapter before it brings one of that name");
    }
  std::sort(all.begin(), all.end(), [](const auto* a, const auto* b) { return a->name < b->name; });
  tokens = all.size();
  std::vector<ts::tensor_ref> rows;
  for (const ts::textual_inversion* one : all) {
    if (one->parts.size() != 1)
      return ts::failure{.code = ts::errc::unsupported, .what = "the file of tokens has no place for vectors of two text encoders", .file = one->file,
                         .place = "embedding " + ts::quoted(one->name), .expected = "vectors for one", .advice = "use --mode upl"};
    TENSORSMITH_TRY(ts::tensor_ref wide, ts::cast(one->parts[0].rows, ts::dtype::f32));
    rows.push_back(std::move(wide));
  }
  if (rows.empty()) return ts::tensor_ref{};
  return ts::stacked_rows(std::move(rows));
}

/// A diffusers folder becomes a checkpoint in the original names, f16 unless --dtype says otherwise, under `state_dict`; the adapters' tokens
/// become a file of the web UI beside it, whose name is the word to use. @fails as the writers
inline ts::result<summary> merge_to_checkpoint(const options& o, ts::job& run) {
  summary report;
  if (ts::extension(o.output) != ".ckpt") return usage_error("--mode upl-ckpt-v2 writes a .ckpt file, and OUTPUT is none", "pass OUTPUT.ckpt");
  const std::string tokens_path = o.output.substr(0, o.output.size() - std::string_view(".ckpt").size()) + ".pt";
  TENSORSMITH_CHECK(examples::check_adapter_options(o.adapters));
  TENSORSMITH_TRY(examples::base_model base, examples::begin(o, examples::files_of(o.adapters), report, run));
  report.form = "torch";

  const ts::dtype to = examples::dtype_of(o.cast).value_or(ts::dtype::f16);
  const ts::cast_overflow overflow = examples::overflow_of(o.cast);
  const auto tally = std::make_shared<ts::cast_tally>();
  TENSORSMITH_TRY(const examples::opened_adapters adapters, examples::open_adapters(o.adapters, base.model, run));
  TENSORSMITH_TRY(report.merged.adapters,
                  examples::merge_opened(base.model, adapters, {.strict = o.adapters.strict, .to = to, .kept = {}, .overflow = overflow}, run));
  for (const ts::merged_weight& weight : report.merged.adapters.account.weights) report.merged.changed.push_back({weight.component, weight.name});
  TENSORSMITH_CHECK(ts::cast_floats(base.model, to, {}, overflow, tally));
  TENSORSMITH_TRY(const ts::catalog tensors, ts::checkpoint_catalog(base.model, run));
  report.tensors = tensors.size();

  const examples::output_options how{o.force, o.verify, o.dry_run};
  std::size_t tokens = 0;
  TENSORSMITH_TRY(const ts::tensor_ref rows, stacked_tokens(adapters, tokens, run));
  std::vector<examples::file_summary> files;
  if (rows) {
    const std::string word = ts::detail::file_stem(o.output);
    TENSORSMITH_CHECK(examples::check_absent(tokens_path, o.force));
    ts::catalog vectors;
    TENSORSMITH_CHECK(vectors.add("*", rows, "tokens"));
    ts::json_value ids;
    ids.set("*", 265);  // "*</w>" of CLIP's vocabulary: what the web UI's own files have, and some readers look for
    const examples::torch_scalars beside{{"string_to_token", std::move(ids)}, {"name", word}};
    TENSORSMITH_CHECK(examples::write_torch_output(vectors, tokens_path, "string_to_param", beside, how, run, report));
    files = report.files;
    run.info(tokens_path, "the vectors of " + examples::counted(tokens, "token") + "; the word for them in a prompt is " + ts::quoted(word));
  }
  TENSORSMITH_CHECK(examples::write_torch_output(tensors, o.output, "state_dict", {}, how, run, report));
  report.files.insert(report.files.end(), files.begin(), files.end());
  if (o.cast.overflow != "error") examples::warn_of_overflow(o.cast, tally->overflowed, run);
  return report;
}

/// --mode upl: as a merge, the embeddings of the adapters included; --mode upl-ckpt-v2: see above. @fails usage (BASE is no diffusers folder), and
/// as they do
inline ts::result<summary> merge_as_upl(options o, ts::job& run) {
  if (!ts::is_diffusers_folder(o.base))
    return usage_error("--mode " + o.mode + " takes a diffusers folder as BASE", "drop --mode to merge into a file");
  if (o.mode == "upl-ckpt-v2") return merge_to_checkpoint(o, run);
  o.adapters.bundled_embeddings = true;
  return merge(o, run);
}

}  // namespace merge_lora
