// SPDX-License-Identifier: MIT
//
// Fuzzing parse_pickle and what finds the tensors in a pickle: the document is pickled again and read again as the same; the
// tensors are written as safetensors and as a torch checkpoint, and read again as the same.
#include "fuzz/pickle_again.hpp"
#include "fuzz/rewrite_torch.hpp"
#include "tensorsmith/format/torch/pickle.hpp"

namespace {

using namespace tensorsmith;

void check_document(const pickle_document& doc) {
  std::string text, where;
  if (!fuzz::pickle_again(doc).write(text)) return;
  auto bytes = std::make_shared<std::vector<std::byte>>(text.size());
  std::memcpy(bytes->data(), text.data(), text.size());
  limits bounds;
  bounds.pickle_depth = 60000;  // containers are filled before they are put into others here, so more nests
  const auto again = parse_pickle(std::move(bytes), "again.pkl", "", bounds);
  if (!again) fuzz::violated("what was pickled can be read", again.error().message());
  if (!fuzz::same_document(doc, *again, where)) fuzz::violated("values stay", where);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::memory_bound bound(size);
  auto bytes = std::make_shared<std::vector<std::byte>>(size);
  if (size) std::memcpy(bytes->data(), data, size);
  const limits bounds = fuzz::limits_for(size);
  const auto doc = parse_pickle(std::move(bytes), "m.pkl", "data", bounds, 0, size % 8 < 6);
  if (!doc) return fuzz::check_refusal(doc.error()), 0;
  check_document(*doc);
  static const auto storage = [] {
    std::vector<std::byte> values(512);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::byte>(i * 37);
    return fuzz::in_memory(std::move(values), "storages");
  }();
  torch_tensors tensors(*doc, "m.pkl", "data", [](std::string_view key) -> result<torch_record> {
    if (key.size() > 8)
      return failure{.code = errc::malformed, .what = "the storage is missing", .place = quoted(key)};
    return torch_record{storage, key.size() % 4 * 8, 512 - key.size() % 4 * 8, nullptr, "storage " + quoted(key)};
  }, bounds);
  const auto read = detail::torch_walk(*doc, tensors, "m.pkl", "data", bounds).run(size % 5 == 4 ? "state_dict" : "");
  if (!read) return fuzz::check_refusal(read.error()), 0;
  for (const torch_ignored& part : read->ignored) fuzz::check_line(part.text());
  fuzz::check_notes(read->notes);
  fuzz::check_rewritten(read->tensors, size);
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most, unsigned seed) {
  return fuzz::mutate(data, size, most, seed, fuzz::mutate_pickle);
}
