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

TENSORSMITH_BEGIN_NAMESPACE

/// How an adapter is applied.
struct adapter_strength {
  double strength = 1;                                          ///< m
  dora_strength dora = dora_strength::interpolate;              ///< what m means for DoRA
  std::optional<double> default_alpha;                          ///< alpha where a module stores none; by default alpha/rank is 1
  bool rank_stabilised = false;                                 ///< scale alpha/√rank (PEFT's rsLoRA) with default_alpha
};

/// What a module does to a layer: a change of the weight, of the bias, or both.
struct module_changes {
  weight_change_ptr weight, bias;
  std::string algorithm;         ///< "LoRA", "LoHa", …
  std::vector<std::string> notes;  ///< "alpha is 0: no effect"
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
    TENSORSMITH_TRY(weight_change_ptr change, choose(out));
    if (module_.has("dora_scale") && change) {
      TENSORSMITH_TRY(change, dora(std::move(change)));
      out.algorithm = "DoRA of " + out.algorithm;
    }
    out.weight = std::move(change);
    const tensor_ref bias = module_.has("diff_b") ? module_.find("diff_b") : module_.find("b_norm");
    if (bias) out.bias = std::make_shared<full_change>(bias, static_cast<float>(how_.strength));
    if (!out.weight && !out.bias) return refuse("the parameters of the module make no known algorithm", "those of LoRA, LoHa, LoKr, …", parameters());
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
    TENSORSMITH_TRY(const std::vector<float> value, floats_of(tensor, run_));
    if (!std::isfinite(value[0])) return refuse(std::string(parameter) + " is no finite number", "a finite number", std::to_string(value[0]), errc::numeric);
    return std::optional<double>(static_cast<double>(value[0]));
  }

  /// alpha / rank, or 1 without alpha.
  result<double> scale(std::size_t rank, module_changes& out) const {
    TENSORSMITH_TRY(const std::optional<double> direct, scalar("scale"));
    if (direct) return *direct;
    TENSORSMITH_TRY(const std::optional<double> stored, scalar("alpha"));
    if (stored && *stored == 0.0) out.notes.push_back("alpha is 0: no effect");
    if (stored) return *stored / static_cast<double>(rank);
    if (!how_.default_alpha) return 1.0;
    return *how_.default_alpha / (how_.rank_stabilised ? std::sqrt(static_cast<double>(rank)) : static_cast<double>(rank));
  }
  /// The strength of an additive change: DoRA's own rules apply theirs.
  double additive() const { return module_.has("dora_scale") && how_.dora != dora_strength::peft ? 1.0 : how_.strength; }

  result<weight_change_ptr> choose(module_changes& out) {
    if (module_.has("hada_w1_a")) return hadamard(out);
    if (module_.has("lokr_w1") || module_.has("lokr_w1_a")) return kronecker(out);
    if (module_.has("oft_blocks") || module_.has("oft_diag")) return rotation(out);
    if (module_.has("a1") && module_.has("b1")) return glora(out);
    if (module_.has("on_input")) return scaling(out);
    if (module_.has("lora_down") || module_.has("lora_up") || module_.has("lora_mid")) return low_rank(out);
    if (module_.has("diff") || module_.has("w_norm")) return full(out);
    if (module_.has("set_weight")) return refuse("replacement weights are not supported", "a change of the weight", "set_weight", errc::unsupported);
    out.algorithm = module_.has("b_norm") ? "norm" : "full";
    return weight_change_ptr();
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
    const bool turned = older && (!newer || (of(b2).cols == of(b1).rows && all_.rows == all_.cols && of(a2).rows == all_.rows && of(a1).rows < of(a1).cols));
    if (!newer && !older) return misfit({"a1", "a2", "b1", "b2"});
    const tensor_ref &up = turned ? b2 : b1, &down = turned ? b1 : b2;
    if (bm && (turned || bm.shape().size() != 4 || bm.shape()[1] != of(down).rows || bm.shape()[2] * bm.shape()[3] != positions_)) return misfit({"bm"});
    if (of(down).cols != (bm ? channels_ : all_.cols)) return misfit({"b1", "b2"});
    out.algorithm = "GLoRA";
    TENSORSMITH_TRY(const double s, scale(turned ? of(a1).rows : of(a2).rows, out));
    // Older files name the factor that meets the weight first a2: W @ a2 @ a1, both stored the way that newer files store theirs.
    return weight_change_ptr(std::make_shared<glora_change>(turned ? a2 : a1, turned ? a1 : a2, packed_product(up, down, bm), positions_,
                                                            static_cast<float>(s * additive())));
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
    if (butterfly && (b % 2 != 0 || shape[0] == 0 || shape[0] > 32 || all_.rows % ((std::size_t{1} << shape[0]) * (b / 2)) != 0)) return misfit({blocks});
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
    const bool peft = module_.entry("dora_scale")->name.find("lora_magnitude_vector") != std::string::npos;
    const bool rows = n == all_.rows && (peft || shape.size() < 2 || shape[0] == all_.rows);
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
};

}  // namespace detail

/// The change that a module makes to a layer with this weight. Small tensors (alpha) are read. @fails mismatch (shapes, with both sides), numeric (alpha),
/// unsupported (replacement weights)
inline result<module_changes> make_changes(const adapter_layer& module, const std::string& file, const tensor_info& weight,
                                           const adapter_strength& how, const job& run) {
  return detail::change_builder(module, file, weight, how, run).build();
}

TENSORSMITH_END_NAMESPACE
