// SPDX-License-Identifier: MIT
//
// Every algorithm on linear layers and convolutions, in f32, f16 and bf16, against the formulas in f64; names, accounts and refusals.
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "tensorsmith/arch/merge_adapter.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;

namespace {

using shape = ts::shape_type;
using doubles = std::vector<double>;

/// A tensor of the test: values that its element type holds exactly.
struct values {
  shape extents;
  doubles at;
};

values random_values(shape extents, unsigned seed, double spread = 0.5) {
  values out{extents, doubles(ts::element_count(extents))};
  unsigned state = seed * 2654435761u + 1;
  for (double& x : out.at) {
    state = state * 1664525u + 1013904223u;
    x = static_cast<double>(static_cast<float>((static_cast<double>(state >> 8) / 8388608.0 - 1.0) * spread));
  }
  return out;
}

ts::tensor_ref tensor_of(const std::string& name, values& v, ts::dtype type) {
  std::vector<std::byte> wide(8 * v.at.size()), bytes(ts::byte_count(type, v.at.size()));
  std::memcpy(wide.data(), v.at.data(), wide.size());
  ts::convert_elements(ts::dtype::f64, wide.data(), type, bytes.data(), v.at.size());
  ts::convert_elements(type, bytes.data(), ts::dtype::f64, wide.data(), v.at.size());  // what is stored is what counts
  std::memcpy(v.at.data(), wide.data(), wide.size());
  return ts::in_memory({name, type, v.extents}, std::move(bytes));
}

constexpr const char* linear = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
constexpr const char* conv = "mid_block.resnets.0.conv1";
constexpr const char* point = "mid_block.attentions.0.proj_in";

struct model {
  explicit model(ts::dtype type) {
    weights[linear] = random_values({24, 16}, 1);
    weights[conv] = random_values({24, 16, 3, 3}, 2);
    weights[point] = random_values({24, 16, 1, 1}, 3);
    package.family = "sd1";
    ts::component unet;
    unet.name = "unet";
    for (auto& [name, value] : weights) {
      REQUIRE(unet.weights.add(name + ".weight", tensor_of(name + ".weight", value, type), "base"));
      values& bias = biases[name] = random_values({24}, 9);
      REQUIRE(unet.weights.add(name + ".bias", tensor_of(name + ".bias", bias, type), "base"));
    }
    package.components.push_back(std::move(unet));
  }
  std::map<std::string, values> weights, biases;
  ts::package package;
};

std::string module_name(std::string path) {
  std::replace(path.begin(), path.end(), '.', '_');
  return "lora_unet_" + path;
}

/// An adapter under construction: parameters of one or more modules.
struct adapter_file {
  std::map<std::string, values> tensors;
  std::map<std::string, ts::tensor_ref> stored;

  values& add(const std::string& name, values v, ts::dtype type = ts::dtype::f32) {
    values& kept = tensors[name] = std::move(v);
    stored[name] = tensor_of(name, kept, type);
    return kept;
  }
  ts::result<ts::adapter> read() const {
    ts::catalog out;
    for (const auto& [name, tensor] : stored) REQUIRE(out.add(name, tensor, "adapter"));
    return ts::read_adapter(std::move(out), "a.safetensors");
  }
};

ts::adapter_request request_of(const adapter_file& file, double strength) {
  auto read = file.read();
  INFO((read ? std::string() : read.error().message()));
  REQUIRE(read);
  ts::adapter_request out{.source = std::move(*read)};
  out.unet = out.text_encoder = strength;
  return out;
}

doubles merged_values(const ts::package& package, const std::string& name, const ts::job& run = {}) {
  const ts::tensor_ref tensor = package.components[0].weights.find(name)->tensor;
  const auto bytes = ts::materialize(tensor, run);
  INFO((bytes ? std::string() : bytes.error().message()));
  REQUIRE(bytes);
  doubles out(tensor.info().elements());
  ts::convert_elements(tensor.type(), bytes->data(), ts::dtype::f64, reinterpret_cast<std::byte*>(out.data()), out.size());
  return out;
}

/// Unit in the last place of `x` in a type with this many bits of fraction, down to its smallest normal number.
double ulp(double x, int fraction, int least_exponent) {
  const int exponent = x == 0 ? least_exponent : std::max(least_exponent, std::ilogb(x));
  return std::ldexp(1.0, exponent - fraction);
}

/// f32: within the stated bound of the formula; f16 and bf16: within one unit in the last place.
void compare(ts::dtype type, const doubles& found, const doubles& exact, const doubles& bound) {
  std::size_t wrong = 0, first = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double allowed = type == ts::dtype::f16 ? ulp(exact[i], 10, -14) : type == ts::dtype::bf16 ? ulp(exact[i], 7, -126) : bound[i];
    if (!(std::fabs(found[i] - exact[i]) <= allowed) && wrong++ == 0) first = i;
  }
  CAPTURE(first, found[first], exact[first], bound[first]);
  CHECK(wrong == 0);
}

/// Matrix product in f64; `size` receives the sum of magnitudes.
doubles product(const doubles& a, const doubles& b, std::size_t rows, std::size_t r, std::size_t cols, doubles* size = nullptr) {
  doubles out(rows * cols, 0.0);
  if (size) size->assign(rows * cols, 0.0);
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t k = 0; k < r; ++k)
      for (std::size_t j = 0; j < cols; ++j) {
        out[i * cols + j] += a[i * r + k] * b[k * cols + j];
        if (size) (*size)[i * cols + j] += std::fabs(a[i * r + k] * b[k * cols + j]);
      }
  return out;
}

/// Σ_{i,j} core[i, j, y] · a[i, p] · b[j, q], as [p, q·positions].
doubles tucker(const values& core, const doubles& a, const doubles& b, std::size_t out, std::size_t in) {
  const std::size_t ri = core.extents[0], rj = core.extents[1], k = core.extents[2] * core.extents[3];
  doubles m(out * in * k, 0.0);
  for (std::size_t i = 0; i < ri; ++i)
    for (std::size_t j = 0; j < rj; ++j)
      for (std::size_t y = 0; y < k; ++y)
        for (std::size_t p = 0; p < out; ++p)
          for (std::size_t q = 0; q < in; ++q) m[(p * in + q) * k + y] += core.at[(i * rj + j) * k + y] * a[i * out + p] * b[j * in + q];
  return m;
}

values number(double x) { return {{}, {x}}; }
const ts::dtype types[] = {ts::dtype::f32, ts::dtype::f16, ts::dtype::bf16};
constexpr double unit = 0x1p-24;

/// Merges `file` at `strength` and checks one layer against `exact`, in all types. `terms`: Σ|b·a| for the bound.
void check_layer(const std::string& layer, double strength, const std::function<void(adapter_file&)>& fill,
                 const std::function<std::pair<doubles, doubles>(const model&, adapter_file&)>& formula, std::size_t r) {
  for (const ts::dtype type : types) {
    CAPTURE(layer, ts::name_of(type));
    model base(type);
    adapter_file file;
    fill(file);
    const ts::adapter_request request = request_of(file, strength);
    const auto account = ts::merge_adapters(base.package, {&request, 1}, {}, {});
    INFO((account ? std::string() : account.error().message()));
    REQUIRE(account);
    CHECK(account->adapters[0].applied == 1);
    CHECK(account->adapters[0].unknown.empty());
    const auto [exact, terms] = formula(base, file);
    doubles bound(exact.size());
    for (std::size_t i = 0; i < bound.size(); ++i)
      bound[i] = 2 * static_cast<double>(r + 8) * unit * (std::fabs(base.weights[layer].at[i]) + terms[i]);
    compare(type, merged_values(base.package, layer + ".weight"), exact, bound);
    double change = 0, weight = 0;
    for (std::size_t i = 0; i < exact.size(); ++i) {
      const double w = base.weights[layer].at[i];
      change += (exact[i] - w) * (exact[i] - w), weight += w * w;
    }
    const ts::change_norms norms = account->weights.at(0).recipe->norms();
    CHECK(std::fabs(norms.change - std::sqrt(change)) <= 1e-5 * std::sqrt(change));
    CHECK(std::fabs(norms.weight - std::sqrt(weight)) <= 1e-12 * std::sqrt(weight));
  }
}

}  // namespace

TEST_CASE("LoRA and LoCon: linear, 1×1, 3×3, Tucker, alpha and strength") {
  for (const std::string layer : {linear, point, conv}) {
    const std::size_t cols = layer == conv ? 144 : 16;
    check_layer(
        layer, 0.8,
        [&](adapter_file& f) {
          f.add(module_name(layer) + ".lora_up.weight", random_values(layer == linear ? shape{24, 4} : shape{24, 4, 1, 1}, 5), ts::dtype::f16);
          f.add(module_name(layer) + ".lora_down.weight", random_values(layer == conv ? shape{4, 16, 3, 3} : shape{4, 16}, 6), ts::dtype::f16);
          f.add(module_name(layer) + ".alpha", number(2), ts::dtype::bf16);
        },
        [&](const model& base, adapter_file& f) {
          doubles size, exact = product(f.tensors[module_name(layer) + ".lora_up.weight"].at, f.tensors[module_name(layer) + ".lora_down.weight"].at, 24, 4, cols, &size);
          for (std::size_t i = 0; i < exact.size(); ++i) exact[i] = base.weights.at(layer).at[i] + 0.4 * exact[i], size[i] *= 0.4;
          return std::pair(exact, size);
        },
        4);
  }
  check_layer(
      conv, -1.5,
      [&](adapter_file& f) {
        f.add(module_name(conv) + ".lora_up.weight", random_values({24, 4, 1, 1}, 5));
        f.add(module_name(conv) + ".lora_mid.weight", random_values({4, 4, 3, 3}, 7));
        f.add(module_name(conv) + ".lora_down.weight", random_values({4, 16, 1, 1}, 6));
      },
      [&](const model& base, adapter_file& f) {
        const auto& mid = f.tensors[module_name(conv) + ".lora_mid.weight"];
        const auto &up = f.tensors[module_name(conv) + ".lora_up.weight"].at, &down = f.tensors[module_name(conv) + ".lora_down.weight"].at;
        doubles turned(up.size());
        for (std::size_t i = 0; i < 24; ++i)
          for (std::size_t k = 0; k < 4; ++k) turned[k * 24 + i] = up[i * 4 + k];
        doubles exact = tucker(mid, turned, down, 24, 16), size(exact.size(), 1.5 * 16 * 0.125);
        for (std::size_t i = 0; i < exact.size(); ++i) exact[i] = base.weights.at(conv).at[i] - 1.5 * exact[i];
        return std::pair(exact, size);
      },
      16);
}

TEST_CASE("LoHa: plain and Tucker") {
  for (const bool core : {false, true})
    for (const std::string layer : {linear, conv}) {
      if (core && layer != conv) continue;
      const std::size_t cols = layer == conv ? 144 : 16;
      const std::string m = module_name(layer);
      check_layer(
          layer, 0.5,
          [&](adapter_file& f) {
            for (const char* k : {"1", "2"}) {
              const unsigned seed = 20u + static_cast<unsigned>(k[0]);
              f.add(m + ".hada_w" + k + "_a", random_values(core ? shape{4, 24} : shape{24, 4}, seed));
              f.add(m + ".hada_w" + k + "_b", random_values(core ? shape{4, 16} : shape{4, cols}, seed + 5));
              if (core) f.add(m + ".hada_t" + k, random_values({4, 4, 3, 3}, seed + 9));
            }
            f.add(m + ".alpha", number(1));
          },
          [&](const model& base, adapter_file& f) {
            doubles part[2];
            for (std::size_t k = 0; k < 2; ++k) {
              const std::string n = k == 0 ? "1" : "2";
              const auto &a = f.tensors[m + ".hada_w" + n + "_a"], &b = f.tensors[m + ".hada_w" + n + "_b"];
              part[k] = core ? tucker(f.tensors[m + ".hada_t" + n], a.at, b.at, 24, 16) : product(a.at, b.at, 24, 4, cols);
            }
            doubles exact(part[0].size()), size(exact.size());
            for (std::size_t i = 0; i < exact.size(); ++i) {
              exact[i] = base.weights.at(layer).at[i] + 0.125 * part[0][i] * part[1][i];
              size[i] = 0.125 * (core ? 4.0 : 1.0);  // products of two sums of up to 16 terms below 1/8
            }
            return std::pair(exact, size);
          },
          core ? 32 : 8);
    }
}

TEST_CASE("LoKr: whole and factored operands; alpha means nothing when both are whole") {
  for (const std::string layer : {linear, conv})
    for (const int form : {0, 1, 2}) {  // both whole, w2 factored, w2 with a core
      if (form == 2 && layer != conv) continue;
      const std::string m = module_name(layer);
      const std::size_t k = layer == conv ? 9 : 1;
      check_layer(
          layer, 1.25,
          [&](adapter_file& f) {
            f.add(m + ".lokr_w1", random_values({4, 2}, 31));
            if (form == 0) f.add(m + ".lokr_w2", random_values(layer == conv ? shape{6, 8, 3, 3} : shape{6, 8}, 32));
            if (form == 1) f.add(m + ".lokr_w2_a", random_values({6, 3}, 33)), f.add(m + ".lokr_w2_b", random_values({3, 8 * k}, 34));
            if (form == 2) {
              f.add(m + ".lokr_w2_a", random_values({3, 6}, 33)), f.add(m + ".lokr_w2_b", random_values({3, 8}, 34));
              f.add(m + ".lokr_t2", random_values({3, 3, 3, 3}, 35));
            }
            f.add(m + ".alpha", number(6));
          },
          [&](const model& base, adapter_file& f) {
            const doubles& w1 = f.tensors[m + ".lokr_w1"].at;
            const doubles w2 = form == 0   ? f.tensors[m + ".lokr_w2"].at
                               : form == 1 ? product(f.tensors[m + ".lokr_w2_a"].at, f.tensors[m + ".lokr_w2_b"].at, 6, 3, 8 * k)
                                           : tucker(f.tensors[m + ".lokr_t2"], f.tensors[m + ".lokr_w2_a"].at, f.tensors[m + ".lokr_w2_b"].at, 6, 8);
            const double s = 1.25 * (form == 0 ? 1.0 : 2.0);
            doubles exact(24 * 16 * k), size(exact.size());
            for (std::size_t o = 0; o < 24; ++o)
              for (std::size_t i = 0; i < 16; ++i)
                for (std::size_t y = 0; y < k; ++y) {
                  const double change = s * w1[o / 6 * 2 + i / 8] * w2[((o % 6) * 8 + i % 8) * k + y];
                  const std::size_t at = (o * 16 + i) * k + y;
                  exact[at] = base.weights.at(layer).at[at] + change, size[at] = s;
                }
            return std::pair(exact, size);
          },
          9);
    }
}

TEST_CASE("full differences, norms and (IA)3, with biases") {
  model base(ts::dtype::f32);
  adapter_file file;
  const std::string m = module_name(conv), n = module_name(linear);
  file.add(m + ".diff", random_values({24, 16, 3, 3}, 41));
  file.add(m + ".diff_b", random_values({24}, 42));
  file.add(n + ".weight", random_values({16}, 43));
  file.add(n + ".on_input", number(1));
  file.add(module_name(point) + ".weight", random_values({24, 1, 1, 1}, 44));
  file.add(module_name(point) + ".on_input", number(0));
  const ts::adapter_request request = request_of(file, 0.5);
  const auto account = ts::merge_adapters(base.package, {&request, 1}, {.strict = true}, {});
  INFO((account ? std::string() : account.error().message()));
  REQUIRE(account);
  CHECK(account->adapters[0].applied == 3);
  const doubles full = merged_values(base.package, std::string(conv) + ".weight"), bias = merged_values(base.package, std::string(conv) + ".bias");
  for (std::size_t i = 0; i < full.size(); ++i)
    CHECK(std::fabs(full[i] - (base.weights[conv].at[i] + 0.5 * file.tensors[m + ".diff"].at[i])) <= 4 * unit);
  for (std::size_t i = 0; i < 24; ++i) CHECK(std::fabs(bias[i] - (base.biases[conv].at[i] + 0.5 * file.tensors[m + ".diff_b"].at[i])) <= 4 * unit);
  const doubles in = merged_values(base.package, std::string(linear) + ".weight"), out = merged_values(base.package, std::string(point) + ".weight");
  for (std::size_t i = 0; i < in.size(); ++i) {
    CHECK(std::fabs(in[i] - base.weights[linear].at[i] * (1 + 0.5 * file.tensors[n + ".weight"].at[i % 16])) <= 4 * unit);
    CHECK(std::fabs(out[i] - base.weights[point].at[i] * (1 + 0.5 * file.tensors[module_name(point) + ".weight"].at[i / 16])) <= 4 * unit);
  }
}

TEST_CASE("GLoRA: newer and older files") {
  for (const bool older : {false, true})
    for (const std::string layer : {linear, conv}) {
      const std::string m = module_name(layer);
      const std::size_t k = layer == conv ? 9 : 1;
      check_layer(
          layer, 0.5,
          [&](adapter_file& f) {
            f.add(m + (older ? ".a2.weight" : ".a1.weight"), random_values({16, 3}, 51));
            f.add(m + (older ? ".a1.weight" : ".a2.weight"), random_values({3, 16}, 52));
            f.add(m + (older ? ".b2.weight" : ".b1.weight"), random_values({24, 3}, 53));
            f.add(m + (older ? ".b1.weight" : ".b2.weight"), random_values(layer == conv ? shape{3, 16, 3, 3} : shape{3, 16}, 54));
            f.add(m + ".alpha", number(6));
          },
          [&](const model& base, adapter_file& f) {
            const doubles &right = f.tensors[m + (older ? ".a2.weight" : ".a1.weight")].at, &left = f.tensors[m + (older ? ".a1.weight" : ".a2.weight")].at;
            const doubles fixed = product(f.tensors[m + (older ? ".b2.weight" : ".b1.weight")].at, f.tensors[m + (older ? ".b1.weight" : ".b2.weight")].at, 24, 3, 16 * k);
            const doubles& w = base.weights.at(layer).at;
            doubles exact(w.size()), size(w.size(), 8.0);
            const doubles both = product(right, left, 16, 3, 16);
            for (std::size_t o = 0; o < 24; ++o)
              for (std::size_t i = 0; i < 16; ++i)
                for (std::size_t y = 0; y < k; ++y) {
                  double sum = fixed[(o * 16 + i) * k + y];
                  for (std::size_t c = 0; c < 16; ++c) sum += w[(o * 16 + c) * k + y] * both[c * 16 + i];
                  exact[(o * 16 + i) * k + y] = w[(o * 16 + i) * k + y] + sum;  // 0.5 · 6/3 = 1
                }
            return std::pair(exact, size);
          },
          19);
    }
}

TEST_CASE("OFT rotates the rows of a block: the norm of every column of a block stays") {
  for (const ts::dtype type : {ts::dtype::f32}) {
    model base(type);
    adapter_file file;
    file.add(module_name(conv) + ".oft_blocks", random_values({6, 4, 4}, 61));
    const ts::adapter_request request = request_of(file, 1.0);
    REQUIRE(ts::merge_adapters(base.package, {&request, 1}, {}, {}));
    const doubles found = merged_values(base.package, std::string(conv) + ".weight");
    double moved = 0;
    for (std::size_t block = 0; block < 6; ++block)
      for (std::size_t j = 0; j < 144; ++j) {
        double before = 0, after = 0;
        for (std::size_t i = 0; i < 4; ++i) {
          const std::size_t at = (block * 4 + i) * 144 + j;
          before += base.weights[conv].at[at] * base.weights[conv].at[at], after += found[at] * found[at];
          moved += std::fabs(found[at] - base.weights[conv].at[at]);
        }
        CHECK(std::fabs(before - after) <= 1e-5 * before);
      }
    CHECK(moved > 100);
  }
}

TEST_CASE("DoRA: the norms of rows, or of columns, become the stored magnitudes") {
  for (const bool rows : {true, false})
    for (const std::string layer : {linear, conv}) {
      CAPTURE(rows, layer);
      model base(ts::dtype::f32);
      adapter_file file;
      const std::size_t cols = layer == conv ? 144 : 16, k = cols / 16;
      file.add(module_name(layer) + ".lora_up.weight", random_values({24, 4}, 71));
      file.add(module_name(layer) + ".lora_down.weight", random_values(layer == conv ? shape{4, 16, 3, 3} : shape{4, 16}, 72));
      values magnitude = random_values(rows ? shape{24, 1} : shape{1, 16}, 73);
      for (double& x : magnitude.at) x = std::fabs(x) + 0.5;
      if (layer == conv) magnitude.extents.insert(magnitude.extents.end(), {1, 1});
      const doubles wanted = file.add(module_name(layer) + ".dora_scale", magnitude).at;
      const ts::adapter_request request = request_of(file, 1.0);
      const auto account = ts::merge_adapters(base.package, {&request, 1}, {}, {});
      REQUIRE(account);
      CHECK(account->adapters[0].modules[0].algorithm == std::string("DoRA of ") + (layer == conv ? "LoCon" : "LoRA"));
      ts::job small;
      small.tile_bytes = 4096;
      const doubles found = merged_values(base.package, layer + ".weight", small);
      for (std::size_t n = 0; n < wanted.size(); ++n) {
        double sum = 0;
        for (std::size_t o = 0; o < 24; ++o)
          for (std::size_t j = 0; j < cols; ++j)
            if ((rows ? o : j / k) == n) sum += found[o * cols + j] * found[o * cols + j];
        CHECK(std::fabs(std::sqrt(sum) - wanted[n]) <= 1e-6);
      }
    }
}

TEST_CASE("several adapters: one rounding, in their order; threads and tiles change no bit") {
  std::vector<doubles> results;
  for (const unsigned threads : {1u, 3u})
    for (const std::size_t tile : {std::size_t{512}, std::size_t{1} << 20}) {
      model base(ts::dtype::f16);
      adapter_file first, second;
      first.add(module_name(conv) + ".lora_up.weight", random_values({24, 4}, 81));
      first.add(module_name(conv) + ".lora_down.weight", random_values({4, 144}, 82));
      second.add(module_name(conv) + ".oft_blocks", random_values({3, 8, 8}, 83));
      const ts::adapter_request both[] = {request_of(first, 0.7), request_of(second, 0.5)};
      REQUIRE(ts::merge_adapters(base.package, both, {}, {}));
      const ts::tensor_ref tensor = base.package.components[0].weights.find(std::string(conv) + ".weight")->tensor;
      std::vector<std::byte> bytes(tensor.info().bytes());
      ts::memory_sink sink(bytes);
      const ts::placement whole{tensor.source, {{&sink, 0}}, "w"};
      ts::job run;
      run.threads = threads, run.tile_bytes = tile;
      REQUIRE(ts::execute({&whole, 1}, run));
      doubles out(tensor.info().elements());
      ts::convert_elements(ts::dtype::f16, bytes.data(), ts::dtype::f64, reinterpret_cast<std::byte*>(out.data()), out.size());
      results.push_back(std::move(out));
    }
  for (const doubles& other : results) CHECK(other == results[0]);
}

TEST_CASE("names: kohya's two dialects, diffusers of every age, PEFT") {
  const std::string ldm = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q";
  const std::pair<std::string, std::string> pairs[] = {
      {module_name(linear) + ".lora_up.weight", module_name(linear) + ".lora_down.weight"},
      {ldm + ".lora_up.weight", ldm + ".lora_down.weight"},
      {std::string(linear).insert(std::string(linear).rfind('.'), ".processor") + "_lora.up.weight",
       std::string(linear).insert(std::string(linear).rfind('.'), ".processor") + "_lora.down.weight"},
      {"unet." + std::string(linear) + ".lora.up.weight", "unet." + std::string(linear) + ".lora.down.weight"},
      {"unet.unet." + std::string(linear) + ".lora.up.weight", "unet.unet." + std::string(linear) + ".lora.down.weight"},
      {"unet." + std::string(linear) + ".lora_B.weight", "unet." + std::string(linear) + ".lora_A.weight"},
      {"base_model.model." + std::string(linear) + ".lora_B.default.weight", "base_model.model." + std::string(linear) + ".lora_A.default.weight"}};
  std::vector<doubles> results;
  for (const auto& [up, down] : pairs) {
    CAPTURE(up);
    model base(ts::dtype::f32);
    adapter_file file;
    file.add(up, random_values({24, 4}, 91));
    file.add(down, random_values({4, 16}, 92));
    const ts::adapter_request request = request_of(file, 1.0);
    const auto account = ts::merge_adapters(base.package, {&request, 1}, {.strict = true}, {});
    INFO((account ? std::string() : account.error().message()));
    REQUIRE(account);
    CHECK(account->adapters[0].modules[0].target == linear);
    results.push_back(merged_values(base.package, std::string(linear) + ".weight"));
    CHECK(results.back() == results.front());
  }
}

TEST_CASE("what does not fit is refused, what has no layer is listed, strength 0 does nothing") {
  const auto outcome = [](const adapter_file& file, bool strict = false, double strength = 1.0) {
    model base(ts::dtype::f32);
    const ts::adapter_request request = request_of(file, strength);
    const auto account = ts::merge_adapters(base.package, {&request, 1}, {.strict = strict}, {});
    return account ? "applied " + std::to_string(account->adapters[0].applied) + ", not found " + std::to_string(account->adapters[0].not_found) +
                         ", ignored " + std::to_string(account->adapters[0].ignored)
                   : account.error().message();
  };
  const auto lora = [](const std::string& layer, shape up, shape down) {
    adapter_file file;
    file.add(layer + ".lora_up.weight", random_values(std::move(up), 1));
    file.add(layer + ".lora_down.weight", random_values(std::move(down), 2));
    return file;
  };
  const std::string m = module_name(linear);
  CHECK(outcome(lora(m, {24, 4}, {4, 16})) == "applied 1, not found 0, ignored 0");
  CHECK(outcome(lora(m, {24, 4}, {4, 16}), false, 0.0) == "applied 0, not found 0, ignored 1");
  CHECK(outcome(lora(m, {24, 4}, {4, 32})) ==
        "MIS a.safetensors: module '" + m + "': the adapter's shapes do not fit the layer (expected factors of a weight [24, 16], found lora_up [24, 4], lora_down [4, 32])");
  CHECK(outcome(lora(m, {24, 4}, {3, 16})).find("do not fit the layer") != std::string::npos);
  CHECK(outcome(lora("lora_unet_down_blocks_9_attentions_0_proj_in", {24, 4}, {4, 16})).find("no module of the adapter belongs to a layer of the model") !=
        std::string::npos);

  adapter_file two = lora(m, {24, 4}, {4, 16});
  two.add("lora_unet_down_blocks_9_attentions_0_proj_in.lora_up.weight", random_values({24, 4}, 3));
  two.add("lora_unet_down_blocks_9_attentions_0_proj_in.lora_down.weight", random_values({4, 16}, 4));
  CHECK(outcome(two) == "applied 1, not found 1, ignored 0");
  CHECK(outcome(two, true).find("parts of the adapter do not belong to the model") != std::string::npos);

  // A layer of which only the bias is known, as in a graph whose weight has no name: not passed over.
  adapter_file nameless = two;
  const auto without_weight = [&](bool strict) {
    model base(ts::dtype::f32);
    values bias = random_values({24}, 5);
    REQUIRE(base.package.components[0].weights.add("down_blocks.9.attentions.0.proj_in.bias", tensor_of("bias", bias, ts::dtype::f32), "base"));
    const ts::adapter_request request = request_of(nameless, 1);
    const auto account = ts::merge_adapters(base.package, {&request, 1}, {.strict = strict}, {});
    if (!account) return account.error().message();
    for (const ts::merged_module& module : account->adapters[0].modules)
      if (module.outcome == ts::module_outcome::not_found) return module.reason;
    return std::string("all were found");
  };
  CHECK(without_weight(false) == "the model has no weight 'unet.down_blocks.9.attentions.0.proj_in.weight'");
  CHECK(without_weight(true).starts_with("MIS a.safetensors: parts of the adapter do not belong to the model"));

  adapter_file twice = lora(m, {24, 4}, {4, 16});
  twice.add("lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.lora_up.weight", random_values({24, 4}, 3));
  twice.add("lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.lora_down.weight", random_values({4, 16}, 4));
  CHECK(outcome(twice).find("two modules of one adapter change the same layer") != std::string::npos);

  adapter_file half;
  half.add(m + ".lora_up.weight", random_values({24, 4}, 1));
  half.add(module_name(conv) + ".diff", random_values({24, 16, 3, 3}, 2));
  CHECK(outcome(half).find("a pair of factors is not complete") != std::string::npos);

  adapter_file nan = lora(m, {24, 4}, {4, 16});
  nan.add(m + ".alpha", number(std::nan("")));
  CHECK(outcome(nan).starts_with("NUM a.safetensors: module '" + m + "': alpha is no finite number"));
  adapter_file zero = lora(m, {24, 4}, {4, 16});
  zero.add(m + ".alpha", number(0));
  CHECK(outcome(zero) == "applied 0, not found 0, ignored 1");
}
