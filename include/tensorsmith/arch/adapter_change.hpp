// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/adapter_change.hpp: from the parameters of a module to the change of a weight: algorithm, scale, shape checks.
//
// Include this to merge one module. Formulas and recognition follow kohya-ss/sd-scripts (networks/lora.py, oft.py), LyCORIS (lycoris/modules)
// and PEFT (tuners/lora); ranks are read from shapes, never from metadata.
#pragma once

#include <cmath>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/adapter.hpp"
#include "tensorsmith/tensor/dependent_change.hpp"
#include "tensorsmith/tensor/stored_change.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// How an adapter is applied.
struct adapter_strength {
  double strength = 1;                                          ///< m
  dora_strength dora = dora_strength::interpolate;              ///< what m means for DoRA
  std::optional<double> default_alpha;                          ///< alpha where neither tensors nor configuration have one; none: alpha/rank is 1
  bool rank_stabilised = false;                                 ///< scale alpha/√rank (PEFT's rsLoRA) with default_alpha
};

/// What a module does to a layer: a change of the weight, of the bias, or both.
struct module_changes {
  weight_change_ptr weight, bias;
  std::string algorithm;         ///< "LoRA", "LoHa", …
  tensor_ref stored_bias;        ///< what `bias` is made of: as many elements as the layer's bias must have
  std::vector<std::string> notes;    ///< why it has no effect: "alpha is 0: no effect"
  std::vector<std::string> remarks;  ///< what is worth knowing of a change that is made
};

namespace detail {

/// Builds the change of one module. Shapes are checked against the layer before anything is read.
class change_builder {
 public:
  change_builder(const adapter_layer& module, const std::string& file, const tensor_info& weight, const adapter_strength& how, const job& run)
      : module_(module), file_(file), weight_(weight), all_(plane_of(weight.shape)), how_(how), run_(run) {
    positions_ = weight.shape.size() == 4 ? weight.shape[2] * weight.shape[3] : 1;
    channels_ = weight.shape.size() >= 2 ? weight.shape[1] : all_.cols;
  }

  result<module_changes> build() {
    module_changes out;
    if (weight_.elements() == 0) return refuse("the layer has no elements", "a weight", to_string(weight_.shape));
    TENSORSMITH_CHECK(check_algorithm());
    TENSORSMITH_TRY(weight_change_ptr change, choose(out));
    TENSORSMITH_CHECK(add_elements(change));
    if (module_.has("dora_scale") && change) {
      TENSORSMITH_TRY(change, dora(std::move(change)));
      out.algorithm = "DoRA of " + out.algorithm;
    }
    out.weight = std::move(change);
    TENSORSMITH_CHECK(change_bias(out));
    if (!out.weight && !out.bias) return refuse("the parameters of the module make no known algorithm", "those of LoRA, LoHa, LoKr, …", parameters());
    return out;
  }

  /// A change of fewer input channels than the weight has: the others stay (an inpainting model's mask and masked image).
  result<module_changes> build_partial(const tensor_info& whole) {
    const bool fixed = !module_.has("dora_scale") && (module_.has("lora_down") || module_.has("hada_w1_b") || module_.has("lokr_w2") ||
                                                     module_.has("lokr_w2_b") || module_.has("diff"));
    if (!fixed) return refuse("the adapter's shapes do not fit the layer", "a weight " + to_string(whole.shape), parameters());
    TENSORSMITH_TRY(module_changes out, build());
    out.weight = std::make_shared<partial_change>(std::move(out.weight), all_.cols);
    const std::string others = std::to_string(whole.shape[1] - channels_);
    out.remarks.push_back("the adapter is for " + std::to_string(channels_) + " input channels: the other " + others + " of the layer stay as they are");
    return out;
  }

 private:
  failure refuse(std::string what, std::string expected, std::string found, errc code = errc::mismatch) const {
    return failure{.code = code, .what = std::move(what), .file = file_, .place = "module " + quoted(module_.name), .expected = std::move(expected),
                   .found = std::move(found)};
  }
  std::string parameters() const {
    std::string out;
    for (const auto& [name, entry] : module_.parameters) out += (out.empty() ? "" : ", ") + std::string(name);
    return out;
  }
  std::string shape_text(std::string_view parameter) const {
    const tensor_ref tensor = module_.find(parameter);
    return tensor ? std::string(parameter) + ' ' + to_string(tensor.shape()) : std::string();
  }
  failure misfit(std::initializer_list<std::string_view> shown) const {
    std::string found;
    for (const std::string_view parameter : shown)
      if (module_.has(parameter)) found += (found.empty() ? "" : ", ") + shape_text(parameter);
    return refuse("the adapter's shapes do not fit the layer", "factors of a weight " + to_string(weight_.shape), found);
  }
  static plane of(const tensor_ref& tensor) { return plane_of(tensor.shape()); }

  /// A stored number. @fails numeric (NaN or infinite), mismatch (not one element)
  result<std::optional<double>> scalar(std::string_view parameter) const {
    const tensor_ref tensor = module_.find(parameter);
    if (!tensor) return std::optional<double>();
    if (tensor.info().elements() != 1) return refuse("a parameter is no single number", "one element", shape_text(parameter));
    if (!is_floating(tensor.type())) {
      TENSORSMITH_TRY(const std::vector<std::int64_t> whole, integers_of(tensor, run_));
      return std::optional<double>(static_cast<double>(whole[0]));
    }
    TENSORSMITH_TRY(const std::vector<float> value, floats_of(tensor, run_));
    if (!std::isfinite(value[0]))
      return refuse(std::string(parameter) + " is no finite number", "a finite number", std::to_string(value[0]), errc::numeric);
    return std::optional<double>(static_cast<double>(value[0]));
  }

  /// alpha / rank, or 1 without alpha.
  result<double> scale(std::size_t rank, module_changes& out) {
    TENSORSMITH_TRY(const std::optional<double> direct, scalar("scale"));
    TENSORSMITH_TRY(std::optional<double> alpha, scalar("alpha"));
    bool stabilised = false;
    if (direct) return scale_ = *direct;
    if (!alpha && module_.alpha) alpha = module_.alpha, stabilised = module_.rank_stabilised;
    else if (!alpha) alpha = how_.default_alpha, stabilised = how_.rank_stabilised;
    if (!alpha) return scale_ = 1.0;
    if (*alpha == 0.0) out.notes.push_back("alpha is 0: no effect");
    return scale_ = *alpha / (stabilised ? std::sqrt(static_cast<double>(rank)) : static_cast<double>(rank));
  }
  /// The strength of an additive change: DoRA's own rules apply theirs.
  double additive() const { return module_.has("dora_scale") && how_.dora != dora_strength::peft ? 1.0 : how_.strength; }

  /// Parameters that would be left over, because another algorithm's come first, are an error: nothing is passed over.
  result<void> check_algorithm() const {
    constexpr std::string_view families[] = {"hada_", "lokr_", "oft_", "lora_embedding_", "diff", "w_norm", "set_weight", "a1", "on_input"};
    std::string_view first;
    for (const auto& [name, entry] : module_.parameters) {
      std::string_view family;
      for (const std::string_view head : families)
        if (name.starts_with(head) && name != "diff_b") family = head;
      if (name == "lora_up" || name == "lora_down" || name == "lora_mid") family = "lora_";
      if (family.empty() || family == first) continue;
      if (!first.empty()) return refuse("a module mixes the parameters of two algorithms", "those of one", parameters());
      first = family;
    }
    const bool scaled = first == "lora_" || first == "hada_" || first == "lokr_" || first == "a1" || first == "diff";
    if (module_.has("dora_scale") && !scaled)
      return refuse("magnitudes of DoRA stand beside an algorithm that has none", "LoRA, LoHa, LoKr, GLoRA or full", parameters());
    const bool dense = first == "oft_" || first == "on_input" || first == "a1" || first == "lora_embedding_" || first == "set_weight";
    if (module_.has("bias_values") && dense)
      return refuse("a sparse difference stands beside an algorithm that has none", "LoRA, LoHa, LoKr or full", parameters(), errc::unsupported);
    return {};
  }

  result<weight_change_ptr> choose(module_changes& out) {
    if (module_.has("hada_w1_a")) return hadamard(out);
    if (module_.has("lokr_w1") || module_.has("lokr_w1_a")) return kronecker(out);
    if (module_.has("oft_blocks") || module_.has("oft_diag")) return rotation(out);
    if (module_.has("a1") && module_.has("b1")) return glora(out);
    if (module_.has("on_input")) return scaling(out);
    if (module_.has("lora_down") || module_.has("lora_up") || module_.has("lora_mid")) return low_rank(out);
    if (module_.has("lora_embedding_A") || module_.has("lora_embedding_B")) return embedding(out);
    if (module_.has("diff") || module_.has("w_norm")) return full(out);
    if (module_.has("set_weight")) return replacement(out);
    out.algorithm = module_.has("b_norm") ? "norm" : module_.has("set_bias") ? "replacement" : module_.has("bias_values") ? "sparse" : "full";
    return weight_change_ptr();
  }

  /// Another weight in place of the layer's: PEFT's modules_to_save, ComfyUI's set_weight.
  result<weight_change_ptr> replacement(module_changes& out) const {
    const tensor_ref saved = module_.find("set_weight");
    if (saved.info().elements() != weight_.elements() || (weight_.shape.size() > 1 && of(saved) != all_)) return misfit({"set_weight"});
    out.algorithm = "replacement";
    return weight_change_ptr(std::make_shared<replacement_change>(saved, static_cast<float>(how_.strength)));
  }

  /// PEFT on an embedding: ΔE = scale · (B @ A)ᵀ with A [r, tokens] and B [width, r].
  result<weight_change_ptr> embedding(module_changes& out) {
    const tensor_ref a = module_.find("lora_embedding_A"), b = module_.find("lora_embedding_B");
    if (!a || !b) return refuse("a pair of factors is not complete", "lora_embedding_A and lora_embedding_B", parameters());
    const bool fits = a.shape().size() == 2 && b.shape().size() == 2 && a.shape()[0] != 0 && a.shape()[0] == b.shape()[1] &&
                      a.shape()[1] == all_.rows && b.shape()[0] == all_.cols;
    if (!fits) return misfit({"lora_embedding_A", "lora_embedding_B"});
    out.algorithm = "LoRA";
    TENSORSMITH_TRY(const double s, scale(a.shape()[0], out));
    TENSORSMITH_TRY(const tensor_ref right, transposed(b));
    return weight_change_ptr(std::make_shared<low_rank_change>(packed_product(a, right, {}, true), static_cast<float>(s * additive())));
  }

  /// Single elements that old LyCORIS extractions keep beside the factors; they belong to the difference that the scale multiplies.
  result<void> add_elements(weight_change_ptr& change) {
    if (!module_.has("bias_indices") && !module_.has("bias_values")) return {};
    const tensor_ref indices = module_.find("bias_indices"), values = module_.find("bias_values"), size = module_.find("bias_size");
    if (!indices || !values || !size) return refuse("a sparse difference is not complete", "bias_indices, bias_values and bias_size", parameters());
    sparse_elements stored{indices, values, {}};
    TENSORSMITH_TRY(const std::vector<std::int64_t> extents, integers_of(size, run_));
    std::size_t count = extents.empty() ? 0 : 1;
    for (const std::int64_t extent : extents) {
      const auto wide = static_cast<std::uint64_t>(extent);
      if (extent <= 0 || wide > weight_.elements() || count > weight_.elements() / wide) return misfit_sparse(extents);
      stored.extents.push_back(static_cast<std::size_t>(wide)), count *= wide;
    }
    const shape_type& shape = indices.shape();
    const bool fits = count == weight_.elements() && stored.extents[0] == weight_.shape[0] && shape.size() == 2 && shape[0] == extents.size() &&
                      shape[1] == values.info().elements();
    if (!fits) return misfit_sparse(extents);
    if (!change) {
      module_changes alone;
      TENSORSMITH_CHECK(scale(1, alone));
    }
    auto elements = std::make_shared<sparse_change>(std::move(stored), all_, static_cast<float>(scale_ * additive()));
    if (change) change = std::make_shared<combined_change>(std::move(change), std::move(elements));
    else change = std::move(elements);
    return {};
  }
  failure misfit_sparse(const std::vector<std::int64_t>& extents) const {
    std::string size;
    for (const std::int64_t extent : extents) size += (size.empty() ? "" : ", ") + std::to_string(extent);
    return refuse("the adapter's shapes do not fit the layer", "a sparse difference of a weight " + to_string(weight_.shape),
                  "bias_size [" + size + "], " + shape_text("bias_indices") + ", " + shape_text("bias_values"));
  }

  /// The bias of the layer: a difference (diff_b, b_norm), PEFT's lora_B.bias with the scale of its factors, or another bias.
  result<void> change_bias(module_changes& out) const {
    std::string_view found;
    for (const std::string_view name : {"diff_b", "b_norm", "lora_bias", "set_bias"}) {
      if (!module_.has(name)) continue;
      if (!found.empty()) return refuse("a module changes its bias twice", "one change", std::string(found) + " and " + std::string(name));
      found = name;
    }
    if (found.empty()) return {};
    out.stored_bias = module_.find(found);
    if (found == "lora_bias" && !out.weight) return refuse("a pair of factors is not complete", "lora_down and lora_up", parameters());
    if (found == "set_bias") out.bias = std::make_shared<replacement_change>(out.stored_bias, static_cast<float>(how_.strength));
    else out.bias = std::make_shared<full_change>(out.stored_bias, static_cast<float>(how_.strength * (found == "lora_bias" ? scale_ : 1.0)));
    return {};
  }

  result<weight_change_ptr> low_rank(module_changes& out) {
    const tensor_ref up = module_.find("lora_up"), down = module_.find("lora_down"), mid = module_.find("lora_mid");
    if (!up || !down) return refuse("a pair of factors is not complete", "lora_down and lora_up", parameters());
    const std::size_t rank = of(down).rows;
    const bool fits = mid ? of(mid).rows == of(up).cols && mid.shape().size() == 4 && mid.shape()[1] == rank && of(down).cols == channels_ &&
                                mid.shape()[2] * mid.shape()[3] == positions_
                          : of(up).cols == rank && of(down).cols == all_.cols;
    if (rank == 0 || of(up).rows != all_.rows || !fits) return misfit({"lora_up", "lora_mid", "lora_down"});
    out.algorithm = mid ? "LoCon (Tucker)" : positions_ > 1 ? "LoCon" : "LoRA";
    TENSORSMITH_TRY(const double s, scale(rank, out));
    return weight_change_ptr(std::make_shared<low_rank_change>(packed_product(up, down, mid), static_cast<float>(s * additive())));
  }

  /// One of LoHa's two products; in Tucker form the left factor is stored [rank, out].
  std::optional<packed_product> hadamard_product(std::string_view left, std::string_view right, std::string_view core) const {
    const tensor_ref a = module_.find(left), b = module_.find(right), t = module_.find(core);
    if (!a || !b) return std::nullopt;
    const std::size_t rank = of(b).rows;
    if (t) {
      const shape_type& shape = t.shape();
      const bool fits = shape.size() == 4 && shape[0] == of(a).rows && shape[1] == rank && shape[2] * shape[3] == positions_;
      if (!fits || of(a).cols != all_.rows || of(b).cols != channels_) return std::nullopt;
      return packed_product(a, b, t, true);
    }
    if (rank == 0 || of(a).cols != rank || of(a).rows != all_.rows || of(b).cols != all_.cols) return std::nullopt;
    return packed_product(a, b);
  }

  result<weight_change_ptr> hadamard(module_changes& out) {
    auto first = hadamard_product("hada_w1_a", "hada_w1_b", "hada_t1"), second = hadamard_product("hada_w2_a", "hada_w2_b", "hada_t2");
    if (!first || !second) return misfit({"hada_w1_a", "hada_w1_b", "hada_t1", "hada_w2_a", "hada_w2_b", "hada_t2"});
    out.algorithm = "LoHa";
    TENSORSMITH_TRY(const double s, scale(of(module_.find("hada_w1_b")).rows, out));
    return weight_change_ptr(std::make_shared<hadamard_change>(std::move(*first), std::move(*second), static_cast<float>(s * additive())));
  }

  /// One operand of LoKr, and the rank of its factors (0: stored whole).
  std::optional<kronecker_operand> kronecker_side(std::string_view whole, std::string_view left, std::string_view right, std::string_view core,
                                                  std::size_t& rank) const {
    if (const tensor_ref w = module_.find(whole)) return kronecker_operand(w);
    const tensor_ref a = module_.find(left), b = module_.find(right), t = module_.find(core);
    if (!a || !b || of(b).rows == 0) return std::nullopt;
    rank = of(b).rows;
    if (t) {
      const shape_type& shape = t.shape();
      if (shape.size() != 4 || shape[0] != of(a).rows || shape[1] != rank) return std::nullopt;
      return kronecker_operand(packed_product(a, b, t, true));
    }
    if (of(a).cols != rank) return std::nullopt;
    return kronecker_operand(packed_product(a, b));
  }

  result<weight_change_ptr> kronecker(module_changes& out) {
    std::size_t rank1 = 0, rank2 = 0;
    auto w1 = kronecker_side("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_t1", rank1);
    auto w2 = kronecker_side("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", rank2);
    if (!w1 || !w2 || w1->rows() * w2->rows() != all_.rows || w1->cols() * w2->cols() != all_.cols || w2->cols() % positions_ != 0)
      return misfit({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"});
    out.algorithm = "LoKr";
    double s = 1;  // with both operands whole, alpha means nothing
    if (const std::size_t rank = rank2 ? rank2 : rank1) {
      TENSORSMITH_TRY(s, scale(rank, out));
    }
    return weight_change_ptr(std::make_shared<kronecker_change>(std::move(*w1), std::move(*w2), static_cast<float>(s * additive())));
  }

  result<weight_change_ptr> full(module_changes& out) {
    const bool norm = module_.has("w_norm");
    const tensor_ref diff = module_.find(norm ? "w_norm" : "diff");
    if (diff.info().elements() != weight_.elements() || (weight_.shape.size() > 1 && of(diff) != all_)) return misfit({norm ? "w_norm" : "diff"});
    out.algorithm = norm ? "norm" : "full";
    return weight_change_ptr(std::make_shared<full_change>(diff, static_cast<float>(additive())));
  }

  result<weight_change_ptr> scaling(module_changes& out) {
    const tensor_ref weight = module_.find("weight");
    TENSORSMITH_TRY(const std::optional<double> on_input, scalar("on_input"));
    const bool input = on_input.value_or(0) != 0;
    if (!weight || weight.info().elements() != (input ? channels_ : all_.rows)) return misfit({"weight"});
    out.algorithm = "(IA)3";
    return weight_change_ptr(std::make_shared<scaling_change>(weight, input, positions_, static_cast<float>(how_.strength)));
  }

  result<weight_change_ptr> glora(module_changes& out) {
    const tensor_ref a1 = module_.find("a1"), a2 = module_.find("a2"), b1 = module_.find("b1"), b2 = module_.find("b2"), bm = module_.find("bm");
    if (!a2 || !b2) return refuse("the factors are not complete", "a1, a2, b1 and b2", parameters());
    // Newer files store a1 [in, r], a2 [r, in], b1 [out, r], b2 [r, in]; older ones a1 [r, in], a2 [in, r], b1 [r, in], b2 [out, r].
    const bool newer = of(b1).rows == all_.rows && of(a1).rows == channels_ && of(a2).cols == channels_ && of(b2).rows == of(b1).cols;
    const bool older = of(b2).rows == all_.rows && of(a2).rows == channels_ && of(a1).cols == channels_ && of(b1).rows == of(b2).cols;
    const bool square = of(b2).cols == of(b1).rows && all_.rows == all_.cols && of(a2).rows == all_.rows && of(a1).rows < of(a1).cols;
    const bool turned = older && (!newer || square);
    if (!newer && !older) return misfit({"a1", "a2", "b1", "b2"});
    const tensor_ref &up = turned ? b2 : b1, &down = turned ? b1 : b2, &right = turned ? a2 : a1, &left = turned ? a1 : a2;
    const std::size_t rank = of(left).rows;
    if (of(right).cols != rank) return misfit({"a1", "a2"});
    if (bm && (turned || bm.shape().size() != 4 || bm.shape()[0] != of(up).cols || bm.shape()[1] != of(down).rows ||
               bm.shape()[2] * bm.shape()[3] != positions_))
      return misfit({"bm"});
    if (of(down).cols != (bm ? channels_ : all_.cols)) return misfit({"b1", "b2"});
    out.algorithm = "GLoRA";
    TENSORSMITH_TRY(const double s, scale(rank, out));
    // Older files name the factor that meets the weight first a2: W @ a2 @ a1, both stored the way that newer files store theirs.
    return weight_change_ptr(std::make_shared<glora_change>(right, left, packed_product(up, down, bm), positions_, static_cast<float>(s * additive())));
  }

  result<weight_change_ptr> rotation(module_changes& out) {
    rotation_parameters p;
    p.solved = module_.has("oft_diag");
    p.blocks = module_.find(p.solved ? "oft_diag" : "oft_blocks");
    p.rescale = module_.find("rescale");
    const shape_type& shape = p.blocks.shape();
    const bool butterfly = shape.size() == 4;
    const std::string_view blocks = p.solved ? "oft_diag" : "oft_blocks";
    if (shape.size() < 3 || shape.size() > 4 || shape.back() != shape[shape.size() - 2] || shape.back() == 0) return misfit({blocks});
    const std::size_t b = shape.back(), groups = shape[shape.size() - 3];
    if (groups * b != all_.rows) return misfit({blocks});
    if (butterfly && (b % 2 != 0 || shape[0] == 0 || shape[0] > 32 || all_.rows % ((std::size_t{1} << shape[0]) * (b / 2)) != 0))
      return misfit({blocks});
    if (p.rescale && p.rescale.info().elements() != all_.rows) return misfit({"rescale"});
    p.rule = std::string_view(module_.name).starts_with("oft_unet_") ? oft_constraint::kohya : oft_constraint::lycoris;
    TENSORSMITH_TRY(const std::optional<double> alpha, scalar("alpha"));
    p.constraint = alpha.value_or(0) * static_cast<double>(all_.rows);
    out.algorithm = butterfly ? "BOFT" : "OFT";
    return weight_change_ptr(std::make_shared<rotation_change>(std::move(p), how_.strength));
  }

  result<weight_change_ptr> dora(weight_change_ptr inner) const {
    const tensor_ref magnitude = module_.find("dora_scale");
    const shape_type& shape = magnitude.shape();
    const std::size_t n = magnitude.info().elements();
    // PEFT always has one magnitude an output row ([out], convolutions [1, out, 1, 1]); LyCORIS says by the place of the 1 which axis it means.
    // diffusers' converter to kohya's names keeps PEFT's shape: where it fits no input channels, it can only be meant for the rows.
    const bool peft = module_.entry("dora_scale")->name.find("lora_magnitude_vector") != std::string::npos;
    const bool rows = n == all_.rows && (peft || shape.size() < 2 || shape[0] == all_.rows || n != channels_);
    if (!rows && n != channels_) return misfit({"dora_scale"});
    return weight_change_ptr(std::make_shared<dora_change>(std::move(inner), magnitude, rows, positions_, how_.dora, how_.strength));
  }

  const adapter_layer& module_;
  const std::string& file_;
  const tensor_info& weight_;
  plane all_;
  const adapter_strength& how_;
  const job& run_;
  std::size_t positions_ = 1, channels_ = 0;
  double scale_ = 1;  // of the difference that was built last
};

/// The channels of a model without a mask, and of the inpainting models made from it.
inline constexpr std::size_t latent_channels = 4, inpainting_channels = 9;

}  // namespace detail

/// The change that a module makes to a layer with this weight. Small tensors (alpha) are read. A fixed difference for 4 input channels is taken for a
/// convolution of 9: an inpainting model's mask and masked image are not touched. @fails mismatch (shapes, with both sides; parameters missing,
/// or of several algorithms), numeric (alpha), unsupported (sparse differences where no tool makes them)
inline result<module_changes> make_changes(const adapter_layer& module, const std::string& file, const tensor_info& weight,
                                           const adapter_strength& how, const job& run) {
  auto built = detail::change_builder(module, file, weight, how, run).build();
  if (built || built.error().code != errc::mismatch || weight.shape.size() != 4 || weight.shape[1] != detail::inpainting_channels) return built;
  tensor_info narrow = weight;
  narrow.shape[1] = detail::latent_channels;
  auto partial = detail::change_builder(module, file, narrow, how, run).build_partial(weight);
  return partial ? std::move(partial) : std::move(built);
}

TENSORSMITH_END_NAMESPACE
