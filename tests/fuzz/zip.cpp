// SPDX-License-Identifier: MIT
//
// Fuzzing open_zip, read_entry and open_entry: what is accepted is packed again by zip_layout, and read again as the same.
#include <deque>

#include "fuzz/mutate_zip.hpp"
#include "fuzz/rewrite.hpp"
#include "tensorsmith/io/zip_write.hpp"

namespace {

using namespace tensorsmith;

/// The contents as tensors would read them. Empty optional: refused.
std::optional<std::vector<std::byte>> through_entry_bytes(const zip_archive& archive, const zip_entry& e) {
  const entry_bytes at = open_entry(archive, e);
  if (at.check)
    if (const auto fine = at.check->verify(fuzz::one_thread()); !fine) return fuzz::check_refusal(fine.error()), std::nullopt;
  std::vector<std::byte> out(static_cast<std::size_t>(e.size));
  if (const auto read = at.source->read_at(at.offset, out); !read) return fuzz::check_refusal(read.error()), std::nullopt;
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::memory_bound bound(size);
  const auto archive = open_zip(fuzz::as_file({data, size}, "m.zip"), fuzz::limits_for(size));
  if (!archive) return fuzz::check_refusal(archive.error()), 0;
  zip_layout layout;
  std::vector<std::vector<std::byte>> contents;
  constexpr std::uint64_t most = 1u << 20;
  bool complete = true;
  for (const zip_entry& e : archive->entries()) {
    if (e.header_offset > size || e.data_offset > size || e.compressed > size - e.data_offset) fuzz::violated("entries lie in the file", e.name);
    if (archive->find(e.name) != &e) fuzz::violated("an entry is found by its name", e.name);
    auto bytes = read_entry(*archive, e, most, "--max-entry");
    if (bytes && bytes->size() != e.size) fuzz::violated("an entry has its size", e.name);
    if (!bytes) fuzz::check_refusal(bytes.error());
    if (e.size <= most) {
      const auto other = through_entry_bytes(*archive, e);
      if (bool(other) != bool(bytes) || (other && *other != *bytes)) fuzz::violated("both ways to read an entry agree", e.name);
    }
    complete = complete && bytes;
    if (!complete) continue;
    layout.add(e.name, e.size, e.crc % 3 == 0 ? 64 : 1);
    contents.push_back(std::move(*bytes));
  }
  if (!complete || contents.empty()) return 0;
  std::vector<std::byte> again(static_cast<std::size_t>(layout.file_bytes()));
  memory_sink sink(again);
  std::vector<std::uint32_t> crcs;
  for (std::size_t i = 0; i < contents.size(); ++i) {
    crc_sink part(sink, layout.offset(i), layout.size(i));
    if (const auto written = part.write_at(0, contents[i]); !written) fuzz::violated("an entry is written", written.error().message());
    crcs.push_back(*part.crc());
  }
  if (const auto written = layout.write_headers(sink, crcs); !written) fuzz::violated("headers are written", written.error().message());
  const auto second = open_zip(fuzz::in_memory(std::move(again), "again.zip"));
  if (!second) fuzz::violated("what was packed can be opened", second.error().message());
  if (second->entries().size() != contents.size()) fuzz::violated("all entries are there", std::to_string(second->entries().size()));
  for (std::size_t i = 0; i < contents.size(); ++i) {
    const zip_entry& e = second->entries()[i];
    if (e.name != archive->entries()[i].name) fuzz::violated("names stay", e.name);
    const auto bytes = read_entry(*second, e, most, "");
    if (!bytes || *bytes != contents[i]) fuzz::violated("contents stay", e.name);
  }
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most, unsigned seed) {
  return fuzz::mutate(data, size, most, seed, fuzz::mutate_zip);
}
