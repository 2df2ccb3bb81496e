// SPDX-License-Identifier: MIT
//
// Conversion of element types, memory to memory, one thread. `of_bare`: speed as a ratio to a bare loop of the same conversion with
// intrinsics over the whole array, measured in this process by alternation; `of_memcpy`: as a ratio to memcpy of as many bytes as
// are read and written together, halved.
#include <immintrin.h>

#include <cstring>
#include <vector>

#include "support/measure.hpp"
#include "tensorsmith/core/convert.hpp"

namespace ts = tensorsmith;

namespace {

constexpr std::size_t count = std::size_t{32} << 20;  // 128 MiB of f32: far larger than the caches

using loop = void (*)(const std::byte*, std::byte*, std::size_t);

__attribute__((target("f16c,avx2"))) void bare_f32_to_f16(const std::byte* in, std::byte* out, std::size_t n) {
  for (std::size_t i = 0; i < n; i += 8) {
    const __m256 x = _mm256_loadu_ps(reinterpret_cast<const float*>(in) + i);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * i), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
}
__attribute__((target("f16c,avx2"))) void bare_f16_to_f32(const std::byte* in, std::byte* out, std::size_t n) {
  for (std::size_t i = 0; i < n; i += 8) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 2 * i));
    _mm256_storeu_ps(reinterpret_cast<float*>(out) + i, _mm256_cvtph_ps(x));
  }
}
__attribute__((target("avx2"))) void bare_bf16_to_f32(const std::byte* in, std::byte* out, std::size_t n) {
  for (std::size_t i = 0; i < n; i += 8) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 2 * i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 4 * i), _mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
  }
}
/// Round to nearest even by the usual addition; NaNs are not looked at, so the baseline does less than the library.
__attribute__((target("avx2"))) void bare_f32_to_bf16(const std::byte* in, std::byte* out, std::size_t n) {
  const __m256i half = _mm256_set1_epi32(0x7FFF), one = _mm256_set1_epi32(1);
  for (std::size_t i = 0; i < n; i += 16) {
    __m256i part[2];
    for (std::size_t k = 0; k < 2; ++k) {
      const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + 4 * (i + 8 * k)));
      const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(x, 16), one);
      part[k] = _mm256_srli_epi32(_mm256_add_epi32(x, _mm256_add_epi32(half, odd)), 16);
    }
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(part[0], part[1]), 0xD8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 2 * i), packed);
  }
}

void convert(benchmark::State& state, ts::dtype from, ts::dtype to, loop bare) {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("f16c")) {
    state.SkipWithError("the baseline needs AVX2 and F16C");
    return;
  }
  const std::size_t in_bytes = ts::byte_count(from, count), out_bytes = ts::byte_count(to, count);
  std::vector<std::byte> numbers(4 * count), in(in_bytes), out(out_bytes), other(std::max(in_bytes, out_bytes));
  for (std::size_t i = 0; i < count; ++i)
    ts::detail::store_as(numbers.data() + 4 * i, static_cast<float>(i % 8209) * 0.37F - 1500.0F);
  if (from == ts::dtype::f32) in = numbers;
  else ts::convert_elements(ts::dtype::f32, numbers.data(), from, in.data(), count);
  numbers = {};
  ts::convert_elements(from, in.data(), to, out.data(), count);
  bare(in.data(), other.data(), count);
  if (std::memcmp(out.data(), other.data(), out_bytes) != 0) measure::fail("the library and the bare loop differ");
  measure::alternate(
      state, [&] { ts::convert_elements(from, in.data(), to, out.data(), count); }, [&] { bare(in.data(), other.data(), count); });
  double best = 1e9, ours = 1e9;
  for (int i = 0; i < 5; ++i) {
    const double start = measure::seconds();
    std::memcpy(other.data(), in.data(), std::min(in_bytes, other.size()));
    const double middle = measure::seconds();
    ts::convert_elements(from, in.data(), to, out.data(), count);
    best = std::min(best, (middle - start) * static_cast<double>(in_bytes + out_bytes) / static_cast<double>(2 * in_bytes));
    ours = std::min(ours, measure::seconds() - middle);
  }
  state.counters["of_memcpy"] = best / ours;
  state.SetBytesProcessed(static_cast<std::int64_t>(in_bytes + out_bytes) * static_cast<std::int64_t>(state.iterations()));
}

}  // namespace

BENCHMARK_CAPTURE(convert, f32_to_f16, ts::dtype::f32, ts::dtype::f16, bare_f32_to_f16)->UseManualTime();
BENCHMARK_CAPTURE(convert, f16_to_f32, ts::dtype::f16, ts::dtype::f32, bare_f16_to_f32)->UseManualTime();
BENCHMARK_CAPTURE(convert, bf16_to_f32, ts::dtype::bf16, ts::dtype::f32, bare_bf16_to_f32)->UseManualTime();
BENCHMARK_CAPTURE(convert, f32_to_bf16, ts::dtype::f32, ts::dtype::bf16, bare_f32_to_bf16)->UseManualTime();
BENCHMARK_MAIN();
