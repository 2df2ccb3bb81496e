// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/combine_adapters.hpp: several adapters become one adapter file: joined exactly, brought to a rank, or added as other tools do.
//
// Include this for LoRA + LoRA without a model. Modules meet by the layer they change, whatever names the files use. All that is planned here is
// names and shapes (and alphas); factors are read when the output is written.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/adapter_change.hpp"
#include "tensorsmith/arch/adapter_places.hpp"
#include "tensorsmith/arch/combine_metadata.hpp"
#include "tensorsmith/arch/merge_adapter.hpp"
#include "tensorsmith/tensor/truncated_svd.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// How adapters are combined. m: strength of an adapter, s: alpha / rank of a module.
enum class combine_mode : std::uint8_t {
  /// Exact: ΔW = Σ m·s·up·down. Ranks add up. LoRA and LoCon (with Tucker cores too), full differences and norms.
  concat,
  /// The best approximation of the same sum at a given rank. LoHa, LoKr and full differences become LoRA. What kohya's svd_merge_lora.py computes,
  /// but its clamping of factors at their 99 % quantile.
  svd,
  /// cloneofsimo's `lpl`: up = Σ m·up, down = Σ m·down. Their product has cross terms, and strengths act squared.
  lpl,
  /// cloneofsimo's `ljl`: ranks add up, strengths are ignored: concat at strength 1.
  ljl,
  /// kohya's merge_lora.py without a model: as lpl, each factor times √(alpha / alpha of the first file), up by the magnitude of m.
  kohya,
};

/// "concat", "svd", "lpl", "ljl", "kohya".
constexpr std::string_view name_of(combine_mode mode) noexcept {
  constexpr std::string_view names[] = {"concat", "svd", "lpl", "ljl", "kohya"};
  return names[static_cast<std::size_t>(mode)];
}

/// One adapter to combine, with what its file says about itself.
struct combine_source {
  adapter_request request;
  std::vector<std::pair<std::string, std::string>> metadata{};
};

/// What a combination may be told.
struct combine_options {
  combine_mode mode = combine_mode::concat;
  std::size_t rank = 0;       ///< of svd
  std::size_t conv_rank = 0;  ///< of svd, for kernels larger than 1×1; 0: rank
  std::optional<dtype> to{};  ///< element type of factors; none: that of all the files if they agree, else f32. alpha is always f32
  cast_overflow overflow = cast_overflow::error;
  bool strict = false;        ///< tensors of no known algorithm are an error
};

/// One module of the output.
struct combined_layer {
  std::string name, algorithm;  ///< as the output names it; "LoRA", "LoCon", "LoCon (Tucker)", "full", "norm"
  std::size_t rank = 0, sources = 0;  ///< 0: no factors; adapters that it was made of
  double alpha = 0;
  std::shared_ptr<const truncated_svd_recipe> svd;  ///< its truncation is known once the tensors are written
};

/// Adapters combined, ready to be written.
struct combined_adapter {
  catalog tensors;
  std::vector<std::pair<std::string, std::string>> metadata;
  std::vector<merged_adapter> sources;      ///< what became of every module of every file
  std::vector<combined_layer> layers;
  std::vector<std::string> embeddings;      ///< carried over, by their names in the output; or "NAME of FILE: why not"
  std::size_t largest_memory = 0;           ///< bytes that the largest layer needs while it is computed
};

namespace detail {

/// The weight that a module changes, as far as its factors tell.
struct layer_geometry {
  std::size_t out = 0, cols = 0;        // cols: in · kernel
  std::size_t kernel_rows = 0, kernel_cols = 0;  // 0: not told
  bool four = false;                    // factors with a kernel's dimensions

  std::size_t kernel() const noexcept { return kernel_rows * kernel_cols; }
  shape_type weight() const {
    if (kernel() <= 1 && !four) return {out, cols};
    return {out, cols / kernel(), kernel_rows, kernel_cols};
  }
  shape_type up(std::size_t rank) const { return weight().size() == 2 ? shape_type{out, rank} : shape_type{out, rank, 1, 1}; }
  shape_type down(std::size_t rank) const {
    shape_type out_shape = weight();
    out_shape[0] = rank;
    return out_shape;
  }
};

/// One module of one adapter on its way into a layer of the output.
struct combine_piece {
  enum class kind : std::uint8_t { low_rank, product, full, norm, bias };
  std::size_t source = 0;
  const adapter_layer* layer = nullptr;
  double strength = 1, scale = 1;
  kind what = kind::bias;
  layer_geometry shape;
  std::size_t account = 0;  // index of its merged_module

  tensor_ref up() const { return layer->find("lora_up"); }
  tensor_ref mid() const { return layer->find("lora_mid"); }
  tensor_ref down() const { return layer->find("lora_down"); }
  std::size_t rank() const { return plane_of(down().shape()).rows; }        // that alpha refers to
  std::size_t left_rank() const { return plane_of(up().shape()).cols; }     // differs with a core
  double factor() const { return strength * scale; }
};

/// Understands one module. Nothing is read but alpha.
class piece_reader {
 public:
  piece_reader(const adapter_layer& layer, const adapter_place& place, const std::string& file, const adapter_strength& how, const job& run)
      : layer_(layer), place_(place), file_(file), how_(how), run_(run) {}

  result<combine_piece> read() {
    combine_piece out;
    out.layer = &layer_;
    TENSORSMITH_TRY(out.what, kind_of());
    if (out.what == combine_piece::kind::low_rank || out.what == combine_piece::kind::product) {
      TENSORSMITH_TRY(out.scale, scale());
    }
    if (out.what == combine_piece::kind::bias || out.what == combine_piece::kind::norm) return out;
    TENSORSMITH_TRY(out.shape, geometry());
    if (out.shape.out == 0 || out.shape.cols == 0) return misfit();
    if (out.shape.kernel() == 0) {  // flattened factors of a convolution, or a linear layer
      const bool wide = place_.wide_kernel() && out.shape.cols % 9 == 0;
      out.shape.kernel_rows = out.shape.kernel_cols = wide ? 3 : 1;
    }
    return out;
  }

 private:
  using kind = combine_piece::kind;
  static plane of(const tensor_ref& tensor) { return plane_of(tensor.shape()); }
  failure refuse(errc code, std::string what, std::string expected, std::string found, std::string advice = {}) const {
    return failure{.code = code, .what = std::move(what), .file = file_, .place = "module " + quoted(layer_.name), .expected = std::move(expected),
                   .found = std::move(found), .advice = std::move(advice)};
  }
  failure misfit() const {
    std::string found;
    for (const auto& [name, entry] : layer_.parameters)
      if (entry->tensor.shape().size() > 1) found += (found.empty() ? "" : ", ") + std::string(name) + ' ' + to_string(entry->tensor.shape());
    return refuse(errc::mismatch, "the factors of the module do not fit together", "factors of one weight", found);
  }

  /// Every parameter of the module has its place in one algorithm.
  result<kind> kind_of() const {
    struct row {
      std::string_view first;
      kind what;
      std::initializer_list<std::string_view> rest;
    };
    const row rows[] = {
        {"lora_down", kind::low_rank, {"lora_up", "lora_mid", "alpha", "scale", "diff_b"}},
        {"hada_w1_a", kind::product, {"hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "alpha", "scale", "diff_b"}},
        {"lokr_w1", kind::product, {"lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "alpha", "scale", "diff_b"}},
        {"lokr_w1_a", kind::product, {"lokr_w1_b", "lokr_t1", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "alpha", "scale", "diff_b"}},
        {"diff", kind::full, {"diff_b", "alpha"}},
        {"w_norm", kind::norm, {"b_norm", "alpha"}},
        {"b_norm", kind::norm, {"alpha"}},
        {"diff_b", kind::bias, {"alpha"}}};
    for (const row& one : rows) {
      if (!layer_.has(one.first)) continue;
      for (const auto& [name, entry] : layer_.parameters)
        if (name != one.first && std::find(one.rest.begin(), one.rest.end(), name) == one.rest.end()) return cannot(name);
      if (one.what == kind::low_rank && !layer_.has("lora_up"))
        return refuse(errc::mismatch, "a pair of factors is not complete", "lora_down and lora_up", "lora_down alone");
      return one.what;
    }
    if (layer_.parameters.empty()) return refuse(errc::mismatch, "the module has no parameters", "lora_down and lora_up", "nothing");
    return cannot(layer_.parameters[0].first);
  }
  failure cannot(std::string_view parameter) const {
    if (parameter == "lora_up" || parameter == "lora_mid")
      return refuse(errc::mismatch, "a pair of factors is not complete", "lora_down and lora_up", std::string(parameter) + " alone");
    const bool dependent = parameter == "dora_scale" || parameter.starts_with("oft_") || parameter == "rescale" || parameter == "on_input" ||
                           parameter == "weight" || parameter == "a1" || parameter == "a2" || parameter == "b1" || parameter == "b2" ||
                           parameter == "bm";
    if (dependent)
      return refuse(errc::unsupported, "the change of this module depends on the weight of the model, so it cannot be combined without one",
                    "LoRA, LoCon, LoHa, LoKr, a full difference or a norm", "the parameter " + std::string(parameter),
                    "merge the adapters into a model instead");
    return refuse(errc::unsupported, "a parameter of the module cannot be combined", "those of LoRA, LoCon, LoHa, LoKr, a full difference or a norm",
                  std::string(parameter));
  }

  /// A stored number. diffusers' convert_state_dict_to_kohya writes alpha as an integer. @fails numeric, mismatch
  result<double> number(std::string_view parameter) const {
    const tensor_ref tensor = layer_.find(parameter);
    if (tensor.info().elements() != 1)
      return refuse(errc::mismatch, "a parameter is no single number", "one element", std::string(parameter) + ' ' + to_string(tensor.shape()));
    if (!is_floating(tensor.type())) {
      TENSORSMITH_TRY(const std::vector<std::int64_t> whole, integers_of(tensor, run_));
      return static_cast<double>(whole[0]);
    }
    TENSORSMITH_TRY(const std::vector<double> value, doubles_of(tensor, run_));
    if (!std::isfinite(value[0]))
      return refuse(errc::numeric, std::string(parameter) + " is no finite number", "a finite number", std::to_string(value[0]));
    return value[0];
  }
  /// The s of a module: stored alpha / rank, that of a configuration, or 1.
  result<double> scale() const {
    std::size_t rank = 0;
    for (const std::string_view down : {"lora_down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"})
      if (layer_.has(down)) {
        rank = of(layer_.find(down)).rows;
        break;
      }
    if (rank == 0 && layer_.has("lokr_w1") && layer_.has("lokr_w2")) return 1.0;  // with both operands whole, alpha means nothing
    if (rank == 0) return misfit();
    if (layer_.has("scale")) return number("scale");
    const double r = static_cast<double>(rank);
    if (layer_.has("alpha")) {
      TENSORSMITH_TRY(const double alpha, number("alpha"));
      return alpha / r;
    }
    if (layer_.alpha) return *layer_.alpha / (layer_.rank_stabilised ? std::sqrt(r) : r);
    if (how_.default_alpha) return *how_.default_alpha / (how_.rank_stabilised ? std::sqrt(r) : r);
    return 1.0;
  }

  static void take_kernel(layer_geometry& to, const shape_type& shape) {
    if (shape.size() == 4) to.kernel_rows = shape[2], to.kernel_cols = shape[3], to.four = true;
  }
  result<layer_geometry> geometry() const {
    if (layer_.has("lora_down")) return low_rank();
    if (layer_.has("hada_w1_a")) return hadamard();
    if (layer_.has("diff")) {
      const tensor_ref diff = layer_.find("diff");
      if (diff.shape().size() != 2 && diff.shape().size() != 4) return misfit();
      layer_geometry out{of(diff).rows, of(diff).cols};
      take_kernel(out, diff.shape());
      if (!out.four) out.kernel_rows = out.kernel_cols = 1;
      return out;
    }
    return kronecker();
  }
  result<layer_geometry> low_rank() const {
    const tensor_ref up = layer_.find("lora_up"), down = layer_.find("lora_down"), mid = layer_.find("lora_mid");
    const auto ranks = [](const tensor_ref& t) { return t.shape().size() == 2 || t.shape().size() == 4; };
    if (!ranks(up) || !ranks(down) || of(down).rows == 0) return misfit();
    layer_geometry out{of(up).rows, of(down).cols};
    take_kernel(out, down.shape());
    if (!mid) return of(up).cols == of(down).rows ? result<layer_geometry>(out) : misfit();
    if (mid.shape().size() != 4 || mid.shape()[0] != of(up).cols || mid.shape()[1] != of(down).rows || (out.four && out.kernel() != 1))
      return misfit();
    take_kernel(out, mid.shape());
    out.cols *= out.kernel();
    return out;
  }
  result<layer_geometry> hadamard() const {
    const tensor_ref a = layer_.find("hada_w1_a"), b = layer_.find("hada_w1_b"), core = layer_.find("hada_t1");
    if (!b) return misfit();
    layer_geometry out{core ? of(a).cols : of(a).rows, of(b).cols};
    take_kernel(out, core ? core.shape() : b.shape());
    if (core) out.cols *= out.kernel();
    return out;
  }
  /// Rows and columns of one operand of LoKr.
  std::optional<plane> operand(std::string_view whole, std::string_view left, std::string_view right, std::string_view core,
                               layer_geometry& out) const {
    if (const tensor_ref w = layer_.find(whole)) {
      if (whole == "lokr_w2") take_kernel(out, w.shape());
      return of(w);
    }
    const tensor_ref a = layer_.find(left), b = layer_.find(right), t = layer_.find(core);
    if (!a || !b) return std::nullopt;
    if (whole == "lokr_w2") take_kernel(out, t ? t.shape() : b.shape());
    if (!t) return plane{of(a).rows, of(b).cols};
    return plane{of(a).cols, of(b).cols * (t.shape().size() == 4 ? t.shape()[2] * t.shape()[3] : 1)};
  }
  result<layer_geometry> kronecker() const {
    layer_geometry out;
    const auto w1 = operand("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_t1", out), w2 = operand("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", out);
    if (!w1 || !w2) return misfit();
    out.out = w1->rows * w2->rows, out.cols = w1->cols * w2->cols;
    return out;
  }

  const adapter_layer& layer_;
  const adapter_place& place_;
  const std::string& file_;
  const adapter_strength& how_;
  const job& run_;
};

/// One combination.
class adapter_combiner {
 public:
  adapter_combiner(std::span<const combine_source> sources, const combine_options& options, job& run)
      : sources_(sources), options_(options), run_(run) {}

  result<combined_adapter> combine() {
    if (options_.mode == combine_mode::svd && options_.rank == 0)
      return failure{.code = errc::usage, .what = "the rank of the result is missing", .expected = "--rank"};
    TENSORSMITH_CHECK(check_bases());
    for (std::size_t i = 0; i < sources_.size(); ++i) TENSORSMITH_CHECK(add(i));
    choose_names();
    type_ = options_.to ? *options_.to : common_type();
    if (!is_floating(type_) || !convertible(dtype::f64, type_))
      return failure{.code = errc::unsupported,
                     .what = "factors cannot be written in this type",
                     .expected = "a floating-point type",
                     .found = std::string(name_of(type_))};
    for (auto& [place, pieces] : groups_) TENSORSMITH_CHECK(emit(place, pieces));
    if (out_.tensors.empty())
      return failure{.code = errc::mismatch,
                     .what = "nothing is left of the adapters",
                     .expected = "a module with an effect",
                     .found = "strengths and alphas of 0"};
    if (options_.mode == combine_mode::lpl || options_.mode == combine_mode::kohya)
      run_.warn(std::string(name_of(options_.mode)),
                "factors are added separately, so the result has cross terms between the adapters and strengths act squared; concat is exact");
    TENSORSMITH_CHECK(carry_embeddings());
    out_.metadata = combined_metadata(facts());
    return std::move(out_);
  }

 private:
  using kind = combine_piece::kind;
  const std::string& file_of(const combine_piece& piece) const { return sources_[piece.source].request.source.file; }
  failure refuse(errc code, const combine_piece& piece, std::string what, std::string expected, std::string found, std::string advice = {}) const {
    return failure{.code = code, .what = std::move(what), .file = file_of(piece), .place = "module " + quoted(piece.layer->name),
                   .expected = std::move(expected), .found = std::move(found), .advice = std::move(advice)};
  }

  /// Adapters for different models do not belong together.
  result<void> check_bases() const {
    const adapter* first = nullptr;
    for (const combine_source& source : sources_) {
      const adapter& one = source.request.source;
      if (one.what.base.empty()) continue;
      if (first && first->what.base != one.what.base)
        return failure{.code = errc::mismatch,
                       .what = "the adapters are for different models",
                       .file = one.file,
                       .expected = "one for " + first->what.base + " as " + first->file,
                       .found = "one for " + one.what.base + " (" + one.what.base_reason + ")"};
      if (!first) first = &one;
    }
    return {};
  }

  result<void> add(std::size_t index) {
    const adapter_request& request = sources_[index].request;
    merged_adapter& account = out_.sources.emplace_back();
    account.file = request.source.file, account.what = request.source.what, account.unknown = request.source.unknown;
    if (!account.unknown.empty()) {
      if (options_.strict)
        return failure{.code = errc::mismatch, .what = "a tensor of the adapter belongs to no known algorithm", .file = account.file,
                       .place = "tensor " + quoted(account.unknown[0]), .advice = "drop --strict to combine the rest"};
      run_.warn(account.file,
                std::to_string(account.unknown.size()) + " tensors of no known algorithm are left out, the first is " + quoted(account.unknown[0]));
    }
    std::map<adapter_place, std::string> seen;
    for (const adapter_layer& layer : request.source.modules) {
      merged_module& module = account.modules.emplace_back();
      module.name = layer.name;
      const adapter_place place = places_.find(layer.name);
      module.component = place.component, module.target = place.path, module.strength = strength_at(place, request);
      const auto [before, fresh] = seen.emplace(place, layer.name);
      if (!fresh)
        return failure{.code = errc::mismatch,
                       .what = "two modules of one adapter change the same layer",
                       .file = account.file,
                       .place = "module " + quoted(layer.name),
                       .expected = "one module a layer",
                       .found = "also " + quoted(before->second)};
      std::vector<combine_piece>& group = groups_[place];
      if (module.strength == 0 && sums_changes()) {  // not looked at, so that its algorithm may be one that cannot be combined
        module.algorithm = algorithm_by_names(layer), module.reason = "strength 0", module.outcome = module_outcome::ignored;
        ++account.ignored;
        continue;
      }
      TENSORSMITH_TRY(combine_piece piece, piece_reader(layer, place, account.file, request.how, run_).read());
      piece.source = index, piece.account = account.modules.size() - 1, piece.strength = module.strength;
      module.algorithm = algorithm_of(piece);
      if (piece.strength == 0) module.reason = "strength 0";
      else if (piece.scale == 0 && !layer.has("diff_b")) module.reason = "alpha is 0: no effect";  // a bias has no alpha
      module.outcome = module.reason.empty() ? module_outcome::applied : module_outcome::ignored;
      ++(module.reason.empty() ? account.applied : account.ignored);
      group.push_back(std::move(piece));
    }
    return {};
  }

  /// Whether the result is a sum of changes, to which strength 0 adds nothing. lpl and kohya add factors, ljl knows no strength.
  bool sums_changes() const noexcept { return options_.mode == combine_mode::concat || options_.mode == combine_mode::svd; }

  double strength_at(const adapter_place& place, const adapter_request& request) const {
    if (options_.mode == combine_mode::ljl) return 1;
    const double own = place.component.starts_with("text_encoder") ? request.text_encoder : request.unet;
    return place.component == "unet" && place.known && request.block_weight ? own * request.block_weight(place.path) : own;
  }

  static std::string algorithm_by_names(const adapter_layer& layer) {
    adapter_module out;
    for (const auto& [name, entry] : layer.parameters) out.add(adapter_bit(name), entry->tensor.shape());
    return out.algorithm();
  }
  static std::string algorithm_of(const combine_piece& piece) {
    switch (piece.what) {
      case kind::low_rank: return piece.mid() ? "LoCon (Tucker)" : piece.shape.kernel() > 1 ? "LoCon" : "LoRA";
      case kind::product: return piece.layer->has("hada_w1_a") ? "LoHa" : "LoKr";
      case kind::norm: return "norm";
      case kind::full:
      case kind::bias: break;
    }
    return "full";
  }

  /// kohya's names, in the dialect of the first file that uses one; cloneofsimo's numbers where its own tool would give them.
  void choose_names() {
    const auto is_numbered = [](const combine_source& s) { return s.request.source.what.family == adapter_family::cloneofsimo; };
    numbered_ =
        (options_.mode == combine_mode::lpl || options_.mode == combine_mode::ljl) && std::all_of(sources_.begin(), sources_.end(), is_numbered);
    bool sdxl = false;
    for (const combine_source& source : sources_) sdxl = sdxl || source.request.source.what.base == "sdxl";
    for (const auto& [place, pieces] : groups_) two_encoders_ = two_encoders_ || place.component == "text_encoder_2";
    two_encoders_ = two_encoders_ || sdxl;
    for (const combine_source& source : sources_)
      for (const adapter_layer& layer : source.request.source.modules)
        if (std::string_view(layer.name).starts_with("lora_unet_")) {
          const std::string_view path = std::string_view(layer.name).substr(10);
          if (path.starts_with("input_blocks_") || path.starts_with("middle_block_") || path.starts_with("output_blocks_")) return void(ldm_ = true);
          if (path.starts_with("down_blocks_") || path.starts_with("mid_block_") || path.starts_with("up_blocks_")) return;
        }
    ldm_ = sdxl;
  }

  /// The element type of all tensors, alphas apart; f32 if they differ.
  dtype common_type() const {
    std::set<dtype> types;
    for (const combine_source& source : sources_)
      for (const adapter_layer& layer : source.request.source.modules)
        for (const auto& [name, entry] : layer.parameters)
          if (name != "alpha" && name != "scale") types.insert(entry->tensor.type());
    const dtype one = types.size() == 1 ? *types.begin() : dtype::f32;
    return is_floating(one) && bits_of(one) >= 16 ? one : dtype::f32;
  }

  // --- one layer ---------------------------------------------------------------------------------------------------------

  result<void> emit(const adapter_place& place, std::vector<combine_piece>& all) {
    const std::string name = adapter_places::kohya_name(place, ldm_, two_encoders_);
    TENSORSMITH_CHECK(same_shapes(all));
    if (options_.mode == combine_mode::lpl || options_.mode == combine_mode::kohya) return add_separately(name, all);
    if (options_.mode == combine_mode::ljl) TENSORSMITH_CHECK(check_all_have(all));
    std::vector<combine_piece> pieces;
    for (combine_piece& piece : all)
      if (piece.strength != 0) pieces.push_back(piece);
    if (pieces.empty()) return {};
    TENSORSMITH_CHECK(sum(name, "diff_b", pieces));
    TENSORSMITH_CHECK(sum(name, "b_norm", pieces));
    // Only now those of scale 0: a bias has no alpha.
    std::erase_if(pieces, [](const combine_piece& piece) { return piece.what == kind::bias || piece.scale == 0; });
    if (pieces.empty()) return {};
    const kind what = pieces[0].what;
    const bool alike = std::all_of(pieces.begin(), pieces.end(), [&](const combine_piece& piece) { return piece.what == what; });
    const auto other =
        std::find_if(pieces.begin(), pieces.end(), [&](const combine_piece& p) { return (p.what == kind::norm) != (what == kind::norm); });
    if (other != pieces.end())
      return refuse(errc::mismatch, *other, "the adapters change a layer in ways that do not go together",
                    algorithm_of(pieces[0]) + " as " + file_of(pieces[0]), algorithm_of(*other));
    if (alike && what == kind::norm) return sum_weights(name, "w_norm", pieces);
    if (options_.mode == combine_mode::svd) return truncate(name, pieces);
    if (alike && what == kind::full) return sum_weights(name, "diff", pieces);
    if (alike && what == kind::low_rank) return join(name, pieces);
    const auto odd = std::find_if(pieces.begin(), pieces.end(), [](const combine_piece& p) { return p.what != kind::low_rank; });
    return refuse(errc::unsupported, *odd, "this kind of change has no factors that could be joined", "LoRA and LoCon alone", algorithm_of(*odd),
                  "pass --mode svd --rank N to bring it to LoRA of that rank");
  }

  /// Kernels that one file tells and another does not are taken over. @fails mismatch
  result<void> same_shapes(std::vector<combine_piece>& pieces) const {
    const combine_piece* first = nullptr;
    for (const combine_piece& piece : pieces)
      if (piece.shape.out != 0 && (!first || (!first->shape.four && piece.shape.four && piece.shape.kernel() > 1))) first = &piece;
    if (!first) return {};
    const layer_geometry wanted = first->shape;
    for (combine_piece& piece : pieces) {
      if (piece.shape.out == 0) continue;
      const layer_geometry& own = piece.shape;
      const bool kernel = own.kernel_rows == wanted.kernel_rows && own.kernel_cols == wanted.kernel_cols;
      if (own.out != wanted.out || own.cols != wanted.cols || (!kernel && own.four && wanted.four))
        return refuse(errc::mismatch, piece, "the adapters change weights of different shapes",
                      "a weight " + to_string(wanted.weight()) + " as " + file_of(*first), "a weight " + to_string(own.weight()));
      piece.shape = wanted;
    }
    return {};
  }

  /// Every adapter has the layer. @fails mismatch
  result<void> check_all_have(const std::vector<combine_piece>& pieces) const {
    for (std::size_t i = 0; i < sources_.size(); ++i)
      if (std::none_of(pieces.begin(), pieces.end(), [&](const combine_piece& p) { return p.source == i; }))
        return refuse(errc::mismatch, pieces[0],
                      "not every adapter changes this layer, which mode " + std::string(name_of(options_.mode)) + " asks for",
                      "a module for it in " + sources_[i].request.source.file, "none", "use --mode concat");
    return {};
  }

  /// Σ m · x of a parameter that some of the pieces have. @fails mismatch
  result<void> sum(const std::string& name, std::string_view parameter, const std::vector<combine_piece>& pieces) {
    std::vector<scaled_block> blocks;
    for (const combine_piece& piece : pieces) {
      const tensor_ref tensor = piece.layer->find(parameter);
      if (!tensor) continue;
      if (!blocks.empty() && tensor.info().elements() != blocks[0].source.info().elements())
        return refuse(errc::mismatch, piece, "the adapters change " + std::string(parameter) + " in different shapes",
                      to_string(blocks[0].source.shape()), to_string(tensor.shape()));
      blocks.push_back({tensor, piece.strength, 0, 0});
    }
    if (blocks.empty()) return {};
    const shape_type shape = blocks[0].source.shape();
    for (const scaled_block& block : blocks)
      if (plane_of(block.source.shape()) != plane_of(shape))
        return refuse(errc::mismatch, pieces[0], "the adapters store " + std::string(parameter) + " in different shapes", to_string(shape),
                      to_string(block.source.shape()));
    return put(name + '.' + std::string(parameter), shape, std::move(blocks));
  }

  result<void> sum_weights(const std::string& name, std::string_view parameter, const std::vector<combine_piece>& pieces) {
    TENSORSMITH_CHECK(sum(name, parameter, pieces));
    out_.layers.push_back({name, algorithm_of(pieces[0]), 0, pieces.size(), 0, nullptr});
    return {};
  }

  /// The exact sum. What all modules share goes into alpha, so that equal scales leave every bit of the factors as it is. What remains, of
  /// magnitude 1 or less, multiplies `down`: trainers start it at 1/√in and `up` at zero, so it is further from f16's smallest numbers, and can
  /// never overflow.
  result<void> join(const std::string& name, const std::vector<combine_piece>& pieces) {
    const bool cores = std::all_of(pieces.begin(), pieces.end(), [](const combine_piece& p) { return static_cast<bool>(p.mid()); });
    std::size_t rank = 0, left = 0;
    double shared = 0;
    for (const combine_piece& piece : pieces) {
      rank += cores ? piece.rank() : piece.left_rank(), left += piece.left_rank();
      if (std::fabs(piece.factor()) > std::fabs(shared)) shared = piece.factor();
    }
    const double n = static_cast<double>(rank), alpha = static_cast<double>(static_cast<float>(shared * n));
    if (!numbered_ && (!std::isfinite(alpha) || std::fabs(alpha) < 1e-30))
      return refuse(errc::numeric, pieces[0], "the scale of the module is outside the range of an alpha", "a strength and alpha of ordinary size",
                    std::to_string(shared));
    std::vector<scaled_block> ups, mids, downs;
    std::size_t row = 0, col = 0;
    for (const combine_piece& piece : pieces) {
      double ratio = numbered_ ? piece.factor() : piece.factor() / (alpha / n);
      if (std::fabs(ratio - 1) <= 0x1p-24) ratio = 1;  // alpha's own rounding
      ups.push_back({piece.up(), 1.0, 0, col});
      tensor_ref down = piece.down();
      if (piece.mid() && !cores) {
        TENSORSMITH_CHECK(check_memory(name, piece, 8.0 * static_cast<double>(piece.left_rank()) * static_cast<double>(piece.shape.cols)));
        down = {std::make_shared<combined_core_recipe>(piece.mid(), piece.down()), 0};
      }
      if (cores) mids.push_back({piece.mid(), 1.0, col, row * piece.shape.kernel()});
      downs.push_back({std::move(down), ratio, row, 0});
      col += piece.left_rank(), row += cores ? piece.rank() : piece.left_rank();
    }
    const layer_geometry& shape = pieces[0].shape;
    TENSORSMITH_CHECK(put(factor_name(name, pieces[0], "up"), shape.up(left), std::move(ups)));
    if (cores) TENSORSMITH_CHECK(put(name + ".lora_mid.weight", {left, rank, shape.kernel_rows, shape.kernel_cols}, std::move(mids)));
    const shape_type down = cores ? shape_type{rank, shape.cols / shape.kernel(), 1, 1} : shape.down(rank);
    TENSORSMITH_CHECK(put(factor_name(name, pieces[0], "down"), down, std::move(downs)));
    return finish(name, algorithm_of(pieces[0]), rank, alpha, pieces.size());
  }

  result<void> truncate(const std::string& name, const std::vector<combine_piece>& pieces) {
    const layer_geometry shape = pieces[0].shape;
    std::vector<scaled_product> products;
    std::vector<weight_change_ptr> others;
    std::size_t together = 0;
    for (const combine_piece& piece : pieces) {
      if (piece.what == kind::low_rank) {
        products.push_back({piece.up(), piece.mid(), piece.down(), piece.factor()});
        together += piece.left_rank();
        continue;
      }
      adapter_strength how = sources_[piece.source].request.how;
      how.strength = piece.strength;
      TENSORSMITH_TRY(module_changes changes, make_changes(*piece.layer, file_of(piece), {"", dtype::f32, shape.weight()}, how, run_));
      others.push_back(std::move(changes.weight));
    }
    std::size_t rank = std::min({shape.kernel() > 1 && options_.conv_rank ? options_.conv_rank : options_.rank, shape.out, shape.cols});
    if (others.empty()) rank = std::min(rank, together);
    const tensor_info up{name + ".lora_up.weight", type_, shape.up(rank)}, down{name + ".lora_down.weight", type_, shape.down(rank)};
    auto made = std::make_shared<truncated_svd_recipe>(std::move(products), std::move(others), up, down, options_.overflow);
    TENSORSMITH_CHECK(check_memory(name, pieces[0], static_cast<double>(made->prepared_bytes())));
    out_.largest_memory = std::max(out_.largest_memory, made->prepared_bytes());
    TENSORSMITH_CHECK(out_.tensors.add(up.name, {made, 0}, origins(pieces)));
    TENSORSMITH_CHECK(out_.tensors.add(down.name, {made, 1}, origins(pieces)));
    return finish(name, shape.kernel() > 1 ? "LoCon" : "LoRA", rank, static_cast<double>(rank), pieces.size(), std::move(made));
  }

  /// What is computed for a whole layer fits into the budget. @fails limit
  result<void> check_memory(const std::string& name, const combine_piece& piece, double bytes) const {
    if (bytes <= static_cast<double>(run_.memory_bytes)) return {};
    return failure{.code = errc::limit,
                   .what = "a layer needs more memory than the budget while it is computed",
                   .file = file_of(piece),
                   .place = "module " + quoted(name),
                   .expected = "at most " + std::to_string(run_.memory_bytes) + " bytes",
                   .found = shortest_text(std::ceil(bytes)),
                   .advice = "raise --memory"};
  }

  /// lpl and kohya: up and down are sums of their own.
  result<void> add_separately(const std::string& name, const std::vector<combine_piece>& pieces) {
    const bool kohya = options_.mode == combine_mode::kohya;
    const combine_piece& first = pieces[0];
    if (!kohya) TENSORSMITH_CHECK(check_all_have(pieces));
    const double rank = static_cast<double>(first.what == kind::low_rank ? first.rank() : 1);
    std::vector<scaled_block> ups, downs;
    for (const combine_piece& piece : pieces) {
      if (piece.what != kind::low_rank || piece.mid() || piece.layer->has("diff_b"))
        return refuse(errc::unsupported, piece, "mode " + std::string(name_of(options_.mode)) + " adds the two factors of LoRA and LoCon alone",
                      "lora_up and lora_down", algorithm_of(piece), "use --mode concat or --mode svd");
      if (piece.rank() != first.rank())
        return refuse(errc::mismatch, piece, "mode " + std::string(name_of(options_.mode)) + " needs the same rank in every file",
                      "rank " + std::to_string(first.rank()) + " as " + file_of(first), std::to_string(piece.rank()),
                      "use --mode concat or --mode svd");
      const double ratio = kohya ? piece.scale / first.scale : 1.0;  // of the alphas: the ranks are the same
      if (kohya && !(ratio >= 0 && std::isfinite(ratio)))
        return refuse(errc::numeric, piece, "the alphas of the two files have no square root of their ratio", "alphas above 0",
                      std::to_string(piece.scale * rank) + " and " + std::to_string(first.scale * rank));
      if (!kohya && piece.scale != first.scale)
        return refuse(errc::mismatch, piece, "mode lpl knows no alpha, so it must be the same in every file",
                      "alpha " + std::to_string(first.scale * rank), std::to_string(piece.scale * rank), "use --mode kohya or --mode concat");
      const double m = piece.strength * std::sqrt(ratio);
      ups.push_back({piece.up(), kohya ? std::fabs(m) : m, 0, 0});
      downs.push_back({piece.down(), m, 0, 0});
    }
    TENSORSMITH_CHECK(put(factor_name(name, first, "up"), first.shape.up(first.rank()), std::move(ups)));
    TENSORSMITH_CHECK(put(factor_name(name, first, "down"), first.shape.down(first.rank()), std::move(downs)));
    return finish(name, algorithm_of(first), first.rank(), first.scale * rank, pieces.size());
  }

  // --- tensors of the output ---------------------------------------------------------------------------------------------

  std::string factor_name(const std::string& name, const combine_piece& first, std::string_view side) const {
    const std::string parameter = "lora_" + std::string(side);
    return numbered_ ? first.layer->entry(parameter)->name : name + '.' + parameter + ".weight";
  }
  std::string origins(const std::vector<combine_piece>& pieces) const {
    std::string out;
    for (const combine_piece& piece : pieces) out += (out.empty() ? "" : ", ") + file_of(piece);
    return out;
  }

  result<void> put(const std::string& name, shape_type shape, std::vector<scaled_block> blocks) {
    for (const scaled_block& block : blocks)
      if (!is_floating(block.source.type()) || !convertible(block.source.type(), dtype::f64))
        return failure{.code = errc::unsupported,
                       .what = "a factor of an adapter is of a type that cannot be computed with",
                       .place = "tensor " + quoted(block.source.info().name),
                       .expected = "a floating-point type",
                       .found = std::string(name_of(block.source.type()))};
    const std::string origin = blocks[0].source.info().name;
    auto made = std::make_shared<assembled_recipe>(std::move(shape), std::move(blocks));
    out_.largest_memory = std::max(out_.largest_memory, made->prepared_bytes());
    TENSORSMITH_TRY(tensor_ref rounded, cast(tensor_ref{std::move(made), 0}, type_, options_.overflow));
    return out_.tensors.add(name, std::move(rounded), origin);
  }

  result<void> finish(const std::string& name, std::string algorithm, std::size_t rank, double alpha, std::size_t sources,
                      std::shared_ptr<const truncated_svd_recipe> svd = {}) {
    out_.layers.push_back({name, std::move(algorithm), rank, sources, alpha, std::move(svd)});
    if (numbered_) return {};
    const float value = static_cast<float>(alpha);
    std::vector<std::byte> bytes(sizeof value);
    std::memcpy(bytes.data(), &value, sizeof value);
    return out_.tensors.add(name + ".alpha", in_memory({name + ".alpha", dtype::f32, {}}, std::move(bytes)), "alpha");
  }

  /// Embeddings come along as they are stored. Of two with one name the first stays; ljl renames all, as cloneofsimo's tool does.
  result<void> carry_embeddings() {
    std::set<std::string> known;
    for (std::size_t i = 0; i < sources_.size(); ++i) {
      std::vector<const textual_inversion*> sorted;
      for (const textual_inversion& one : sources_[i].request.source.embeddings) sorted.push_back(&one);
      std::sort(sorted.begin(), sorted.end(), [](const auto* a, const auto* b) { return a->name < b->name; });
      for (std::size_t k = 0; k < sorted.size(); ++k) {
        const textual_inversion& one = *sorted[k];
        const std::string name =
            numbered_ && options_.mode == combine_mode::ljl ? "<s" + std::to_string(i) + '-' + std::to_string(k) + '>' : one.name;
        if (!known.insert(name).second) {
          out_.embeddings.push_back(name + " of " + one.file + ": an adapter before it brings one of that name");
          run_.warn(one.file, "the embedding " + quoted(name) + " is left out: an adapter before it brings one of that name");
          continue;
        }
        for (const embedding_vectors& part : one.parts) {
          const std::string tail = part.encoder == "text_encoder" ? ".clip_l" : part.encoder == "text_encoder_2" ? ".clip_g" : ".string_to_param.*";
          tensor_ref rows = part.rows;
          if (numbered_ && part.count == 1) {
            TENSORSMITH_TRY(rows, reshaped(rows, {part.width}));
          }
          TENSORSMITH_CHECK(out_.tensors.add(numbered_ ? name : "bundle_emb." + name + tail, std::move(rows), one.file));
        }
        out_.embeddings.push_back(name);
      }
    }
    return {};
  }

  combination_facts facts() const {
    combination_facts out;
    out.mode = name_of(options_.mode);
    out.numbered = numbered_;
    for (const combine_source& source : sources_)
      out.sources.push_back({source.request.source.file, source.request.unet, source.request.text_encoder, source.metadata});
    if (options_.mode == combine_mode::svd) out.conv_rank = options_.conv_rank;
    for (const combined_layer& layer : out_.layers)
      if (layer.rank != 0) out.ranks.insert(layer.rank), out.alphas.insert(layer.alpha);
    if (numbered_) {
      std::vector<std::string> modules;
      for (const combine_source& source : sources_)
        for (const adapter_layer& layer : source.request.source.modules) modules.push_back(layer.name);
      out.classes = {{"unet", cloneofsimo_class_list("unet", modules)}, {"text_encoder", cloneofsimo_class_list("text_encoder", modules)}};
      for (const catalog_entry& entry : out_.tensors.entries())
        if (cloneofsimo_part(entry.name).empty()) out.tokens.push_back(entry.name);
        else if (entry.name.ends_with(":down"))
          out.numbers.emplace_back(entry.name.substr(0, entry.name.size() - 5), entry.tensor.shape()[0]);
    }
    return out;
  }

  std::span<const combine_source> sources_;
  const combine_options& options_;
  job& run_;
  adapter_places places_;
  std::map<adapter_place, std::vector<combine_piece>> groups_;
  combined_adapter out_;
  dtype type_ = dtype::f32;
  bool numbered_ = false, ldm_ = false, two_encoders_ = false;
};

}  // namespace detail

/// Combines adapters into one. Every module of every file ends in the account: used, or ignored for a reason. Names: kohya's, in the dialect of the
/// first file that has one (else the original names for SDXL, diffusers' for the others); for lpl and ljl of cloneofsimo's files alone, their own
/// numbers. Strengths are those of the requests, times the block weights. The sources must outlive the result's tensors.
/// @fails usage (svd without a rank), mismatch (adapters for different models, shapes, two modules for one layer, what a mode asks of every file),
/// unsupported (changes that depend on the weight of a model; for concat those without factors; for lpl and kohya all but LoRA and LoCon), numeric
/// (alpha), limit (an SVD beyond the memory budget)
inline result<combined_adapter> combine_adapters(std::span<const combine_source> sources, const combine_options& options, job& run) {
  return detail::adapter_combiner(sources, options, run).combine();
}

TENSORSMITH_END_NAMESPACE
