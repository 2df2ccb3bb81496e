// SPDX-License-Identifier: MIT
//
// Fuzzing read_onnx, with one external file of 64 bytes: what is accepted is written with every tensor replaced by its own elements, some
// grown, and read again as the same.
#include "format/onnx/onnx_files.hpp"
#include "fuzz/mutate_onnx.hpp"
#include "fuzz/property.hpp"
#include "tensorsmith/arch/onnx_parameters.hpp"
#include "tensorsmith/format/onnx/read.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace {

using namespace tensorsmith;
using files = std::map<std::string, std::shared_ptr<const byte_source>>;

result<onnx_model> read(const std::shared_ptr<const byte_source>& file, const files& beside, const limits& bounds) {
  const onnx_file_opener open = [&](const std::string& location) -> result<std::shared_ptr<const byte_source>> {
    if (const auto at = beside.find(location); at != beside.end()) return at->second;
    return failure{.code = errc::io, .what = "cannot find the file", .file = "m.onnx", .found = quoted(location)};
  };
  return read_onnx(file, open, bounds);
}

void check_places(const onnx_model& model) {
  for (const onnx_initializer& t : model.initializers) {
    const std::uint64_t size = t.payload == onnx_payload::external ? model.external_files.at(t.file).source->size() : model.file->size();
    if (t.offset > size || t.length > size - t.offset) fuzz::violated("elements lie inside their file", quoted(t.name));
    if (t.field.end > model.file->size() || t.body.begin < t.field.begin || t.body.end != t.field.end) fuzz::violated("a tensor lies inside the model", quoted(t.name));
  }
  for (const onnx_node& n : model.nodes)
    if (n.begin >= n.body || n.body > n.end || n.end > model.file->size()) fuzz::violated("a node lies inside the model", quoted(model.name_of(n)));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::memory_bound bound(size);
  const files beside{{"data", std::make_shared<memory_source>("data", std::vector<std::byte>(64, std::byte{7}))}};
  const auto model = read(fuzz::as_file({data, size}, "m.onnx"), beside, fuzz::limits_for(size));
  if (!model) return fuzz::check_refusal(model.error()), 0;
  fuzz::check_notes(model->notes);
  check_places(*model);
  for (const bool text : {false, true})
    if (const auto found = find_onnx_parameters(*model, text); !found) fuzz::check_refusal(found.error());
  const auto tensors = onnx_catalog(*model);
  if (!tensors) fuzz::violated("names are unique", tensors.error().message());
  fuzz::small_tensors small;
  if (!fuzz::take_small(*tensors, small)) fuzz::violated("a proven file can be read", "onnx");
  onnx_update update;
  for (std::size_t i = 0; i < small.tensors.size(); ++i) {
    const catalog_entry& e = small.tensors.entries()[i];
    std::size_t index = 0;
    while (model->initializers[index].name != e.name) ++index;
    tensor_info info = e.tensor.info();
    // One row more, but not of a tensor that is empty beside huge extents: it would have more elements than a reader takes.
    if (i % 3 == 2 && !info.shape.empty() && info.bytes() > 0 && bits_of(info.type) >= 8) {
      small.bytes[i].resize(info.bytes() / info.shape[0] * (info.shape[0] + 1), std::byte{1});
      ++info.shape[0];
    }
    update.tensors.push_back({index, in_memory(info, small.bytes[i])});
  }
  const auto planned = plan_onnx_update(*model, update);
  if (!planned) return fuzz::check_refusal(planned.error()), 0;
  files written;
  for (const planned_file& file : *planned) {
    const std::string bytes = support::bytes_of(file);
    if (bytes.size() != file.size) fuzz::violated("a planned file can be produced", file.name);
    const auto raw = std::as_bytes(std::span(bytes));
    written[file.name] = std::make_shared<memory_source>(file.name, std::vector<std::byte>(raw.begin(), raw.end()));
  }
  const auto again = read(written.at("m.onnx"), written, {});
  if (!again) fuzz::violated("what was written can be read", again.error().message());
  if (again->nodes.size() != model->nodes.size() || again->initializers.size() != model->initializers.size()) fuzz::violated("the graph stays", "onnx");
  for (const onnx_update::replaced_tensor& t : update.tensors) {
    const onnx_initializer& after = again->initializers[t.initializer];
    if (!after.tensor || after.shape != t.tensor.shape() || after.type != t.tensor.type()) fuzz::violated("a tensor has the shape it was given", quoted(after.name));
    const auto wanted = materialize(t.tensor, fuzz::one_thread()), found = materialize(after.tensor, fuzz::one_thread());
    if (!wanted || !found || *wanted != *found) fuzz::violated("a tensor has the elements it was given", quoted(after.name));
  }
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most, unsigned seed) {
  return fuzz::mutate(data, size, most, seed, fuzz::mutate_onnx);
}
