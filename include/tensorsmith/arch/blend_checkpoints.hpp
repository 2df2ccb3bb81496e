// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/blend_checkpoints.hpp: blends whole models of one family: weighted sum, add difference, spherical interpolation, by block.
//
// Include this to merge checkpoints while they are converted or before they are written. Packages with diffusers' names can be mixed whatever
// they were read from. Nothing is computed yet: the base's tensors become recipes that read a tile of every model and round once.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/block_weights.hpp"
#include "tensorsmith/arch/update_checkpoint.hpp"
#include "tensorsmith/tensor/blended.hpp"
#include "tensorsmith/tensor/content_hash.hpp"
#include "tensorsmith/tensor/package.hpp"
#include "tensorsmith/tensor/tied.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What becomes of the autoencoder.
enum class blend_vae : std::uint8_t {
  blend,  ///< as the other parts
  base,   ///< the base's; the others need none
  other,  ///< the first other model's, baked in
};

/// One of the models that are blended into the base. In add difference the first is B, the second C.
struct blend_source {
  package model;
};

/// What a blend is told.
struct blend_options {
  blend_mode mode = blend_mode::weighted_sum;
  double ratio = 0.5;                             ///< r: of B in a weighted sum and slerp (0 to 1), of B − C in add difference
  std::vector<double> weights{};                  ///< weighted sum: one a model, the base first, instead of `ratio`; they sum to 1
  bool normalize = false;                         ///< weights are divided by their sum first
  std::optional<block_weights> blocks{};          ///< factors of the ratio by block of the UNet; BASE: of everything else
  std::optional<double> text_encoder{};           ///< the ratio of the text encoders, whatever the blocks say
  blend_vae vae = blend_vae::blend;
  bool allow_missing = false;                     ///< what another model lacks stays the base's; otherwise an error (mismatch)
  bool allow_extra = false;                       ///< what only others have is left out; otherwise an error (mismatch)
  bool strict = false;                            ///< remarks (other prediction type, integers that differ) are errors
  std::optional<dtype> to{};                      ///< element type of blended tensors, rounded to once; none: the base's
  cast_overflow overflow = cast_overflow::error;  ///< of blended values in that type
  bool keep_nonfinite = false;                    ///< infinite and NaN weights are blended as they are; otherwise an error (numeric)
};

/// What became of one tensor of the base.
struct blended_tensor {
  enum class fate : std::uint8_t {
    blended,  ///< computed from two models or more
    kept,     ///< the base's, bit for bit
    taken,    ///< another model's, bit for bit where the type stays
  };
  std::string component, name;
  fate status = fate::blended;
  double ratio = 0;       ///< the share of the other models, or of their difference
  std::string reason;     ///< why it was kept or taken, or blended in part
};

/// The account of a blend: every tensor of the base in its order, and what was left out of the others.
struct blend_account {
  blend_mode mode = blend_mode::weighted_sum;
  std::vector<std::string> models;                ///< files, the base first
  std::vector<blended_tensor> tensors;
  std::vector<std::string> left_out;              ///< "file: component.name: reason"
  std::size_t blended = 0, kept = 0, taken = 0;   ///< tensors
  std::vector<changed_weight> changed;            ///< blended and taken ones, for writers that keep the rest as it is
  std::shared_ptr<cast_tally> overflowed = std::make_shared<cast_tally>();  ///< values too large, known once written (`overflow` not error)
  std::shared_ptr<blend_tally> nonfinite = std::make_shared<blend_tally>(); ///< infinite and NaN values, known once written (`keep_nonfinite`)
};

/// The weights of a weighted sum as they are used. @fails usage (one that is no number from 0 to 1, a wrong count, a sum other than 1)
inline result<std::vector<double>> blend_weights(std::vector<double> weights, std::size_t models, bool normalize) {
  if (weights.size() != models)
    return failure{.code = errc::usage, .what = "the number of weights is not that of the models",
                   .expected = std::to_string(models) + ", the base's first", .found = std::to_string(weights.size())};
  double sum = 0;
  for (const double w : weights) {
    if (!(w >= 0) || !std::isfinite(w)) return failure{.code = errc::usage, .what = "a weight of a model is negative or no number"};
    sum += w;
  }
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, sum, std::chars_format::general, 6);
  if (normalize && sum > 0) {
    for (double& w : weights) w /= sum;
  } else if (!(std::fabs(sum - 1) <= 1e-6)) {
    return failure{.code = errc::usage, .what = "the weights of the models do not sum to 1", .found = std::string(text, end.ptr),
                   .advice = "correct them, or pass --normalize"};
  }
  return weights;
}

namespace detail {

/// One blend into one package.
class checkpoint_blender {
 public:
  checkpoint_blender(package& base, std::span<const blend_source> sources, const blend_options& options, job& run)
      : base_(base), sources_(sources), options_(options), run_(run), used_(sources.size()) {}

  result<blend_account> blend() {
    TENSORSMITH_CHECK(check_options());
    TENSORSMITH_CHECK(check_families());
    account_.mode = options_.mode;
    account_.models.push_back(base_.source);
    for (const blend_source& source : sources_) account_.models.push_back(source.model.source);
    if (const component* unet = base_.find("unet")) {
      std::vector<std::string_view> names;
      for (const catalog_entry& entry : unet->weights.entries()) names.push_back(entry.name);
      layout_ = unet_layout_of_diffusers(names);
      for (const std::string_view name : names)
        if (path_reader path(name); path.take("up_blocks"))
          if (const auto level = path.take_index()) last_block_ = std::max(last_block_, (layout_.layers_per_block + 1) * (*level + 1) - 1);
    }
    for (const component& part : base_.components) find_terms(part);
    TENSORSMITH_CHECK(check_missing());
    TENSORSMITH_CHECK(check_extra());
    std::size_t row = 0;
    for (component& part : base_.components) TENSORSMITH_CHECK(blend_component(part, row));
    if (account_.blended + account_.taken == 0 && shared_ == 0)
      return failure{.code = errc::mismatch, .what = "the models have no tensor in common", .file = sources_[0].model.source,
                     .expected = "tensors of " + base_.source};
    return std::move(account_);
  }

 private:
  static constexpr double most = 1e4;

  // What is told.

  result<void> check_options() {
    const std::size_t wanted = options_.mode == blend_mode::add_difference ? 2 : 1;
    if (sources_.size() < wanted || (options_.mode != blend_mode::weighted_sum && sources_.size() != wanted))
      return failure{.code = errc::usage, .what = std::string(name_of(options_.mode)) + " takes another number of models",
                     .expected = wanted == 2                              ? "two beside the base, B and C"
                                 : options_.mode == blend_mode::slerp ? "one beside the base"
                                                                      : "one or more beside the base",
                     .found = std::to_string(sources_.size())};
    if (!options_.weights.empty() && options_.mode != blend_mode::weighted_sum)
      return failure{.code = errc::usage, .what = "a weight for every model is for weighted sums", .expected = "one ratio"};
    if (options_.weights.empty() && sources_.size() > 1 && options_.mode == blend_mode::weighted_sum)
      return failure{.code = errc::usage, .what = "a weighted sum of several models needs a weight for each",
                     .expected = std::to_string(sources_.size() + 1) + " weights, the base's first"};
    if (options_.weights.empty()) {
      TENSORSMITH_CHECK(check_ratio(options_.ratio, "the ratio"));
    } else {
      TENSORSMITH_TRY(weights_, blend_weights(options_.weights, sources_.size() + 1, options_.normalize));
    }
    if (!options_.text_encoder) return {};
    if (weights_.size() > 2) return failure{.code = errc::usage, .what = "a ratio of the text encoders is for blends with one ratio"};
    return check_ratio(*options_.text_encoder, "the ratio of the text encoders");
  }

  result<void> check_ratio(double ratio, const std::string& what) const {
    const bool sum = options_.mode != blend_mode::add_difference;
    if (std::isfinite(ratio) && (sum ? ratio >= 0 && ratio <= 1 : std::fabs(ratio) <= most)) return {};
    char text[32];
    const auto end = std::to_chars(text, text + sizeof text, ratio, std::chars_format::general, 6);
    return failure{.code = errc::usage, .what = what + " is out of range", .expected = sum ? "0 to 1" : "-10000 to 10000",
                   .found = std::string(text, end.ptr)};
  }

  /// Models of different families share names but not shapes or meaning. What weights do not tell is a remark.
  result<void> check_families() {
    const auto prediction = [](const package& model) {
      for (const evidence& finding : model.findings)
        if (finding.subject == "prediction_type") return finding.value;
      return std::string();
    };
    for (const blend_source& source : sources_) {
      const package& other = source.model;
      if (!base_.family.empty() && !other.family.empty() && base_.family != other.family)
        return failure{.code = errc::mismatch, .what = "models of different families cannot be blended", .file = other.source,
                       .expected = base_.family + ", as " + base_.source + " is", .found = other.family};
      const std::string ours = prediction(base_), theirs = prediction(other);
      if (ours.empty() || theirs.empty() || ours == theirs) continue;
      if (options_.strict)
        return failure{.code = errc::mismatch, .what = "the models predict different things", .file = other.source, .expected = ours, .found = theirs,
                       .advice = "drop --strict to blend them all the same"};
      run_.warn(other.source, "its prediction type is " + theirs + ", the base's is " + ours + ": a blend of them seldom makes images");
    }
    return {};
  }

  // What belongs together.

  struct match {
    const catalog_entry* entry = nullptr;
    std::vector<const catalog_entry*> others;  // of each source; nullptr: it has none
    bool left = false;                         // the base's, whatever the others have
    bool baked = false;                        // the first source's
  };

  static bool is_vae(std::string_view component) noexcept { return component.starts_with("vae"); }
  static bool is_text(std::string_view component) noexcept { return component.starts_with("text_encoder"); }

  /// An autoencoder may be one component or two (ONNX), and the refiner's only text encoder has either name.
  static bool corresponds(const package& model, std::string_view a, std::string_view b) noexcept {
    return a == b || (is_vae(a) && is_vae(b)) || (model.family == "sdxl-refiner" && is_text(a) && is_text(b));
  }

  const catalog_entry* find(std::size_t source, std::string_view component_name, std::string_view name) {
    const package& model = sources_[source].model;
    for (const bool exact : {true, false})
      for (const component& part : model.components) {
        if (exact ? part.name != component_name : part.name == component_name || !corresponds(model, part.name, component_name)) continue;
        if (const catalog_entry* entry = part.weights.find(name)) return used_[source].insert(entry), entry;
      }
    return nullptr;
  }

  void find_terms(const component& part) {
    const bool vae = is_vae(part.name);
    for (const catalog_entry& entry : part.weights.entries()) {
      match& row = matches_.emplace_back();
      row.entry = &entry;
      row.left = vae && options_.vae == blend_vae::base;
      row.baked = vae && options_.vae == blend_vae::other;
      for (std::size_t k = 0; k < sources_.size(); ++k)
        row.others.push_back(row.left || (row.baked && k > 0) ? nullptr : find(k, part.name, entry.name));
    }
  }

  /// Names for a message: the first ten, whole components as one.
  class listing {
   public:
    void add(const component& part, const catalog_entry& entry) {
      if (rows_.empty() || rows_.back().part != &part) rows_.push_back({&part, {}});
      rows_.back().names.push_back(entry.name);
      ++count_;
    }
    std::size_t count() const noexcept { return count_; }
    std::string text() const {
      std::string out;
      std::size_t shown = 0;
      for (const auto& [part, names] : rows_) {
        if (names.size() == part->weights.size()) {
          out += (out.empty() ? "all " : ", all ") + std::to_string(names.size()) + " of " + quoted(part->name);
          continue;
        }
        for (const std::string& name : names) {
          if (++shown > 10) return out + ", …";
          out += (out.empty() ? "" : ", ") + quoted(part->name.empty() ? name : part->name + "." + name);
        }
      }
      return out;
    }

   private:
    struct row {
      const component* part;
      std::vector<std::string> names;
    };
    std::vector<row> rows_;
    std::size_t count_ = 0;
  };

  static std::string tensors_text(std::size_t count) { return std::to_string(count) + (count == 1 ? " tensor" : " tensors"); }

  result<void> check_missing() const {
    if (options_.allow_missing) return {};
    for (std::size_t k = 0; k < sources_.size(); ++k) {
      listing missing;
      std::size_t at = 0;
      for (const component& part : base_.components)
        for (const catalog_entry& entry : part.weights.entries()) {
          const match& row = matches_[at++];
          if (!row.others[k] && !row.left && !(row.baked && k > 0)) missing.add(part, entry);
        }
      if (missing.count() != 0)
        return failure{.code = errc::mismatch, .what = "the model lacks " + tensors_text(missing.count()) + " of the base",
                       .file = sources_[k].model.source, .found = "without " + missing.text(), .advice = "pass --allow-missing to keep the base's"};
    }
    return {};
  }

  result<void> check_extra() {
    for (std::size_t k = 0; k < sources_.size(); ++k) {
      listing extra;
      for (const component& part : sources_[k].model.components) {
        if (is_vae(part.name) && (options_.vae == blend_vae::base || (options_.vae == blend_vae::other && k > 0))) continue;
        for (const catalog_entry& entry : part.weights.entries()) {
          if (used_[k].contains(&entry)) continue;
          extra.add(part, entry);
          const std::string name = part.name.empty() ? entry.name : part.name + "." + entry.name;
          account_.left_out.push_back(sources_[k].model.source + ": " + name + ": the base has no such tensor");
        }
      }
      if (extra.count() != 0 && !options_.allow_extra)
        return failure{.code = errc::mismatch, .what = "the model has " + tensors_text(extra.count()) + " that the base lacks",
                       .file = sources_[k].model.source, .found = extra.text(), .advice = "pass --allow-missing to leave them out"};
    }
    return {};
  }

  // What is computed.

  /// The factor of the ratio for one tensor. The modules beside the blocks go with the first and the last one.
  double factor_of(const component& part, const std::string& name) const {
    if (!options_.blocks) return 1;
    if (part.name != "unet") return options_.blocks->text_encoder();
    const auto ldm = unet_name_to_ldm(name, layout_);
    if (!ldm) return 1;
    if (ldm->starts_with("time_embed.") || ldm->starts_with("label_emb.")) return options_.blocks->of_ldm("input_blocks.0.0");
    if (ldm->starts_with("out.")) return options_.blocks->of_ldm("output_blocks." + std::to_string(last_block_) + ".0");
    return options_.blocks->of_ldm(*ldm);
  }

  /// The ratio of one tensor, or the weights of all models.
  result<std::vector<double>> shares(const component& part, const match& row) const {
    const double factor = factor_of(part, row.entry->name);
    std::vector<double> out = weights_;
    if (is_text(part.name) && options_.text_encoder) {
      out = {*options_.text_encoder};
    } else if (weights_.empty()) {
      out = {options_.ratio * factor};
    } else if (factor != 1) {
      out[0] = 1;
      for (std::size_t k = 1; k < out.size(); ++k) out[0] -= out[k] *= factor;
    }
    for (std::size_t k = 0; k < out.size(); ++k)
      TENSORSMITH_CHECK(check_ratio(out[k] < 0 && out[k] > -1e-12 ? 0 : out[k], "the ratio of " + quoted(part.name + "." + row.entry->name)));
    if (options_.mode == blend_mode::weighted_sum && out.size() == 1) out = {1 - out[0], out[0]};
    return out;
  }

  blended_tensor& note(const component& part, const match& row, blended_tensor::fate status, double ratio, std::string reason) {
    ++(status == blended_tensor::fate::blended ? account_.blended : status == blended_tensor::fate::kept ? account_.kept : account_.taken);
    if (status != blended_tensor::fate::kept) account_.changed.push_back({part.name, row.entry->name});
    return account_.tensors.emplace_back(blended_tensor{part.name, row.entry->name, status, ratio, std::move(reason)});
  }

  result<void> blend_component(component& part, std::size_t& at) {
    const std::vector<std::size_t> same_as = twins(part);
    const std::size_t first = at;
    std::vector<tensor_ref> made(part.weights.size());
    for (std::size_t i = 0; i < part.weights.size(); ++i, ++at) {
      const match& row = matches_[at];
      if (same_as[i] != i && same_others(matches_[first + same_as[i]], row) && made[same_as[i]]) {
        made[i] = made[same_as[i]];  // tied tensors stay tied
        const blended_tensor before = account_.tensors[account_.tensors.size() - (i - same_as[i])];
        note(part, row, before.status, before.ratio, before.reason);
      } else {
        TENSORSMITH_TRY(made[i], blend_one(part, row));
      }
    }
    for (std::size_t i = 0; i < made.size(); ++i)
      if (made[i]) part.weights.replace(part.weights.entries()[i].name, std::move(made[i]));
    return {};
  }

  /// For every tensor the first that is the same one under another name.
  static std::vector<std::size_t> twins(const component& part) {
    std::vector<std::size_t> out(part.weights.size());
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = i;
    for (const tied_tensors& group : find_tied(part.weights)) {
      const std::size_t first = *std::min_element(group.begin(), group.end());
      for (const std::size_t i : group) out[i] = first;
    }
    return out;
  }
  static bool same_others(const match& a, const match& b) {
    for (std::size_t k = 0; k < a.others.size(); ++k) {
      if (!a.others[k] || !b.others[k]) return false;
      const auto one = tensor_identity::of(a.others[k]->tensor, 0), other = tensor_identity::of(b.others[k]->tensor, 0);
      if (one.key() != other.key()) return false;
    }
    return a.left == b.left && a.baked == b.baked;
  }

  /// What one tensor becomes; nothing if it stays.
  result<tensor_ref> blend_one(const component& part, const match& row) {
    using fate = blended_tensor::fate;
    const tensor_ref& own = row.entry->tensor;
    shared_ += std::any_of(row.others.begin(), row.others.end(), [](const catalog_entry* other) { return other != nullptr; });
    if (row.left) return note(part, row, fate::kept, 0, "the base's autoencoder is kept"), tensor_ref();
    if (!is_floating(own.type())) return keep_integers(part, row);
    std::vector<double> weights{0.0, 1.0};
    blend_mode mode = blend_mode::weighted_sum;
    if (!row.baked) {
      TENSORSMITH_TRY(weights, shares(part, row));
      mode = options_.mode;
    }
    std::vector<blend_term> terms{{own, row.entry->origin}};
    std::string reason;
    for (std::size_t k = 0; k < row.others.size() && !(row.baked && k > 0); ++k) {
      if (row.others[k]) {
        terms.push_back({row.others[k]->tensor, row.others[k]->origin});
        continue;
      }
      reason = sources_[k].model.source + " has no such tensor";
      if (mode != blend_mode::weighted_sum) return note(part, row, fate::kept, 0, reason), tensor_ref();
      weights[0] += weights[terms.size()];  // the share of a model without the tensor goes to the base
      weights.erase(weights.begin() + static_cast<std::ptrdiff_t>(terms.size()));
    }
    if (terms.size() == 1) return note(part, row, fate::kept, 0, reason), tensor_ref();
    const double ratio = mode == blend_mode::weighted_sum ? 1 - weights[0] : weights[0];
    const bool narrow = fewer_inputs(own.shape(), terms[1].tensor.shape());
    const std::size_t count = terms.size(), copied = blend_is_copy_of(mode, weights, count);
    const blend_rounding how{options_.to.value_or(own.type()), options_.overflow,
                             options_.overflow == cast_overflow::error ? nullptr : account_.overflowed, options_.keep_nonfinite, account_.nonfinite};
    TENSORSMITH_TRY(tensor_ref out, blended(std::move(terms), mode, std::move(weights), how));
    if (narrow && copied != 0) reason = "only the input channels that all models have are blended";
    if (copied == 0) note(part, row, fate::kept, 0, reason.empty() ? "ratio 0" : reason);
    else if (copied == count || narrow) note(part, row, fate::blended, ratio, reason);
    else note(part, row, fate::taken, ratio, row.baked ? "the autoencoder is " + sources_[0].model.source + "'s" : "ratio 1");
    return out;
  }

  /// Integers cannot be blended: they must agree.
  result<tensor_ref> keep_integers(const component& part, const match& row) {
    std::string reason = "not a floating-point tensor";
    for (std::size_t k = 0; k < row.others.size(); ++k) {
      if (!row.others[k]) continue;
      const tensor_ref &own = row.entry->tensor, &other = row.others[k]->tensor;
      bool same = own.type() == other.type() && own.shape() == other.shape();
      if (same) {
        TENSORSMITH_TRY(const sha256_digest ours, sha256_of(own, run_));
        TENSORSMITH_TRY(const sha256_digest theirs, sha256_of(other, run_));
        same = ours == theirs;
      }
      if (same) continue;
      if (options_.strict)
        return failure{.code = errc::mismatch, .what = "a tensor that cannot be blended differs from the base's", .place = row.others[k]->origin,
                       .expected = std::string(name_of(own.type())) + " " + to_string(own.shape()) + " with the base's values",
                       .found = std::string(name_of(other.type())) + " " + to_string(other.shape()), .advice = "drop --strict to keep the base's"};
      reason = "not a floating-point tensor, and it differs in " + sources_[k].model.source;
      run_.warn(row.entry->origin, "it cannot be blended and differs in " + sources_[k].model.source + "; the base's is kept");
    }
    note(part, row, blended_tensor::fate::kept, 0, std::move(reason));
    return tensor_ref();
  }

  package& base_;
  std::span<const blend_source> sources_;
  const blend_options& options_;
  job& run_;
  std::vector<double> weights_;  // of a sum of several; empty: the ratio
  unet_name_layout layout_;
  std::size_t last_block_ = 0;   // of the UNet's output blocks
  std::vector<match> matches_;   // in the order of the base's tensors
  std::vector<std::set<const catalog_entry*>> used_;
  std::size_t shared_ = 0;       // tensors that another model has as well
  blend_account account_;
};

}  // namespace detail

/// Blends `sources` into `base`. Tensors are matched by component and name, so models of a pipeline must have been recognised; packages of
/// any other kind work by their own names. Every tensor of the base ends in the account as blended, kept or taken, every other one as left
/// out. A share of 0 leaves the base's tensor as it is stored, a share of 1 takes the other's. Where the base's first convolution has more
/// input channels than the others' (inpainting), the channels that all have are blended.
/// @fails usage (ratios, number of models), mismatch (families, missing or surplus tensors, shapes; with strict what else differs),
/// unsupported (quantized weights). NaN and infinities are found when tensors are written (numeric). The base is unspecified after a failure.
inline result<blend_account> blend_packages(package& base, std::span<const blend_source> sources, const blend_options& options, job& run) {
  return detail::checkpoint_blender(base, sources, options, run).blend();
}

TENSORSMITH_END_NAMESPACE
