// SPDX-License-Identifier: MIT
//
// convert_weights/convert.hpp: the conversion itself: open, choose, cast, write, and the account of every tensor.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "accounts.hpp"
#include "options.hpp"
#include "summary.hpp"
#include "tensorsmith/arch/prune.hpp"
#include "tensorsmith/arch/stable_diffusion_open.hpp"
#include "tensorsmith/format/checkpoint/open.hpp"
#include "tensorsmith/tensor/cast_catalog.hpp"
#include "tensorsmith/tensor/filter.hpp"
#include "write.hpp"

namespace convert_weights {

/// SOURCE as a package of one component without a name, or of a pipeline's components. @fails as open_weights
inline ts::result<ts::package> open_source(const options& o, ts::job& run, summary& report) {
  TENSORSMITH_TRY(ts::package model, ts::open_weights(o.source, {.variant = o.variant, .select = o.key, .prefer = o.prefer}, run));
  report.container = model.container.empty() ? "diffusers folder" : model.container;
  report.source_tensors = inventory(model).size();
  for (const ts::component& part : model.components)
    for (const std::string& text : part.ignored) {
      constexpr std::string_view counted = ": positions are counted, not read";  // the one kind of tensor that readers of folders leave out
      if (text.ends_with(counted)) {
        ++report.source_tensors;
        report.ignored.push_back({ts::qualified_name(part, text.substr(0, text.size() - counted.size())), std::string(counted.substr(2))});
      } else {
        report.ignored_parts.push_back((part.name.empty() ? "" : part.name + ": ") + text);
      }
    }
  return model;
}

/// Leaves out what the user wants left out, on the names of the source. @fails usage (a pattern that matches nothing), mismatch
inline ts::result<void> choose(const options& o, ts::package& model, summary& report) {
  if (!o.select.empty() || !o.drop.empty()) {
    const inventory before(model);
    TENSORSMITH_CHECK(ts::filter_tensors(model, o.select, o.drop));
    report.dropped = before.taken(model);
  }
  TENSORSMITH_TRY(report.pruned, ts::prune(model, pruning(o)));
  for (const ts::component& part : model.components)
    for (const ts::catalog_entry& entry : part.weights.entries())
      if (entry.tensor.type() == ts::dtype::c64 || entry.tensor.type() == ts::dtype::c128)
        return ts::failure{.code = ts::errc::unsupported, .what = "complex numbers are no weights of any network that is converted here",
                           .file = o.source, .place = "tensor " + ts::quoted(ts::qualified_name(part, entry.name)),
                           .expected = "real numbers, integers or booleans", .found = std::string(ts::name_of(entry.tensor.type())),
                           .advice = "leave the tensor out with --drop"};
  return {};
}

/// True if a pipeline has to be made of SOURCE first: names, configurations, side files.
inline bool needs_recognition(const options& o, target to, const ts::package& model) {
  const bool single = model.is_single_model();
  const bool asked = o.ema || o.model != "auto" || !o.config.empty() || !o.tokenizer.empty() || !o.prediction_type.empty();
  if (to == target::checkpoint) return asked;
  return to == target::diffusers && (asked || (single && model.components[0].config.is_null()));
}

/// Makes a pipeline of SOURCE; what it does not use is listed. @fails as recognize_stable_diffusion
inline ts::result<void> recognise(const options& o, ts::package& model, ts::job& run, summary& report) {
  const inventory before(model);
  ts::open_options opening = examples::opening_of(o);
  opening.variant = o.variant;
  TENSORSMITH_TRY(model, ts::recognize_stable_diffusion(std::move(model), opening, run));
  for (ts::ignored_tensor& tensor : before.unused(model)) report.ignored.push_back(std::move(tensor));
  report.family = model.family;
  report.findings = model.findings;
  return {};
}

inline ts::result<summary> convert(const options& o, ts::job& run) {
  summary report;
  report.source = o.source;
  report.output = o.output;
  report.dry_run = o.dry_run;
  TENSORSMITH_TRY(const target to, target_of(o));
  report.to = name_of(to);
  TENSORSMITH_TRY(ts::package model, open_source(o, run, report));
  TENSORSMITH_CHECK(choose(o, model, report));
  if (needs_recognition(o, to, model)) TENSORSMITH_CHECK(recognise(o, model, run, report));
  const auto tally = std::make_shared<ts::cast_tally>();
  if (const auto type = examples::dtype_of(o)) TENSORSMITH_CHECK(ts::cast_floats(model, *type, {}, examples::overflow_of(o), tally));
  TENSORSMITH_CHECK(output_writing(o, model, run, report).write(to));
  examples::warn_of_overflow(o, tally->overflowed, run);
  return report;
}

}  // namespace convert_weights
