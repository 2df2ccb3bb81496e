// SPDX-License-Identifier: MIT
#include <cmath>
#include <complex>
#include <fstream>
#include <iterator>

#include "format/numpy_bytes.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/core/convert.hpp"
#include "tensorsmith/format/numpy/npy.hpp"
#include "tensorsmith/format/numpy/npz.hpp"
#include "tensorsmith/format/numpy/write.hpp"
#include "tensorsmith/io/file.hpp"
#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/memory.hpp"
#include "tensorsmith/tensor/views.hpp"

namespace ts = tensorsmith;
using support::file_of;
using support::npy_bytes;
using support::zip_bytes;
using ts::dtype;

namespace {

std::shared_ptr<const ts::byte_source> stored_file(const std::string& name) {
  auto file = ts::open_file(support::data("numpy/" + name).string(), name);
  REQUIRE(file);
  return *file;
}

template <class T>
void append(std::vector<std::byte>& out, T value) {
  const std::size_t at = out.size();
  out.resize(at + sizeof value);
  std::memcpy(out.data() + at, &value, sizeof value);
}

/// The bytes that tests/data/make/numpy_files.py gave an array of `count` elements.
std::vector<std::byte> expected_bytes(dtype type, std::size_t count) {
  std::vector<std::byte> out;
  for (std::size_t i = 0; i < count; ++i) {
    const double f = static_cast<double>(i) * 0.5 - 1;
    const auto s = static_cast<std::int64_t>(i) * 3 - 20;
    const std::uint64_t u = i * 3;
    switch (type) {
      case dtype::boolean: append(out, static_cast<std::uint8_t>(i % 3 == 0)); break;
      case dtype::i8: append(out, static_cast<std::int8_t>(s)); break;
      case dtype::i16: append(out, static_cast<std::int16_t>(s)); break;
      case dtype::i32: append(out, static_cast<std::int32_t>(s)); break;
      case dtype::i64: append(out, s); break;
      case dtype::u8: append(out, static_cast<std::uint8_t>(u)); break;
      case dtype::u16: append(out, static_cast<std::uint16_t>(u)); break;
      case dtype::u32: append(out, static_cast<std::uint32_t>(u)); break;
      case dtype::u64: append(out, u); break;
      case dtype::f16: append(out, ts::f32_to_f16(static_cast<float>(f))); break;
      case dtype::f32: append(out, static_cast<float>(f)); break;
      case dtype::f64: append(out, f); break;
      case dtype::c64: append(out, std::complex<float>(static_cast<float>(f), 0.0f - static_cast<float>(i) * 0.25f)); break;
      case dtype::c128: append(out, std::complex<double>(f, 0.0 - static_cast<double>(i) * 0.25)); break;
      default: FAIL("no such type here");
    }
  }
  return out;
}

std::vector<std::byte> bytes_of(const ts::tensor_ref& tensor) {
  ts::job run;
  auto bytes = ts::materialize(tensor, run);
  if (!bytes) FAIL(bytes.error().message());
  return std::move(*bytes);
}

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

TEST_CASE("arrays that NumPy wrote, stored and deflated, in both byte orders and orders of dimensions", "[format]") {
  for (const std::string name : {"stored.npz", "deflated.npz"}) {
    const auto file = stored_file(name);
    CHECK(ts::looks_like_npz(*file));
    const auto read = ts::read_npz(file);
    REQUIRE(read);
    CHECK(read->tensors.size() == 3 * 14 + 4);
    if (name == "stored.npz") CHECK(read->ignored == std::vector<std::string>{"'readme.txt': its name does not end in .npy"});
    else CHECK(read->ignored.empty());
    std::size_t types = 0;
    for (const ts::catalog_entry& e : read->tensors.entries()) {
      INFO(name << ": " << e.name);
      CHECK(e.origin == name + ": " + ts::quoted(e.name));
      const ts::tensor_info& info = e.tensor.info();
      CHECK(bytes_of(e.tensor) == expected_bytes(info.type, info.elements()));
      if (e.name.find('/') == std::string::npos) continue;
      ++types;
      CHECK(info.shape == ts::shape_type{3, 4});
      CHECK(e.name.ends_with("/" + ts::npy_name(info.type)->substr(1)));
      const auto turned = ts::transposed(e.tensor);
      REQUIRE(turned);
      CHECK(bytes_of(*ts::transposed(*turned)) == expected_bytes(info.type, 12));
      CHECK(bytes_of(*ts::sliced_rows(e.tensor, 0, 2)) == expected_bytes(info.type, 8));
    }
    CHECK(types == 42);
    CHECK(read->tensors.find("fortran3")->tensor.shape() == ts::shape_type{2, 3, 4});
    CHECK(read->tensors.find("scalar")->tensor.shape().empty());
    CHECK(read->tensors.find("empty")->tensor.shape() == ts::shape_type{0, 5});
    CHECK(read->tensors.contains("größe"));
  }
}

TEST_CASE("a .npy file of every version is a tensor named after the file", "[format]") {
  for (const std::string name : {"one", "version2", "version3"}) {
    const auto file = stored_file(name + ".npy");
    CHECK(ts::looks_like_npy(*file));
    CHECK_FALSE(ts::looks_like_npz(*file));
    const auto read = ts::read_npy(file);
    REQUIRE(read);
    REQUIRE(read->size() == 1);
    CHECK(read->entries()[0].name == name);
    CHECK(read->entries()[0].tensor.shape() == ts::shape_type{3, 4});
    CHECK(bytes_of(read->entries()[0].tensor) == expected_bytes(dtype::f32, 12));
    CHECK((name != "one" || read->entries()[0].tensor.source->stored()));  // refers to the file
  }
}

TEST_CASE("what is no array of numbers is refused by name", "[format]") {
  const auto verdict = [](const std::string& name) {
    const auto read = ts::read_npy(stored_file(name));
    return read ? std::string("accepted") : read.error().message();
  };
  const std::string wanted = " (expected booleans, integers, f2, f4, f8, c8 or c16, found ";
  CHECK(verdict("object.npy") == "UNS object.npy: byte offset 20: the array holds pickled Python objects, which are never loaded" + wanted +
                                     "'|O'); save numbers: array.astype('f4')");
  CHECK(verdict("structured.npy") == "UNS structured.npy: byte offset 20: the array has a structured type (expected an array of numbers, found "
                                     "records of named fields); save each field as an array of its own");
  CHECK(verdict("string.npy") == "UNS string.npy: byte offset 20: the array holds strings" + wanted + "'|S2'); save numbers only");
  CHECK(verdict("unicode.npy") == "UNS unicode.npy: byte offset 20: the array holds strings" + wanted + "'<U2'); save numbers only");
  CHECK(verdict("date.npy") ==
        "UNS date.npy: byte offset 20: the array holds dates or durations" + wanted + "'<M8[D]'); save them as integers: array.view('i8')");
  CHECK(verdict("duration.npy") ==
        "UNS duration.npy: byte offset 20: the array holds dates or durations" + wanted + "'<m8[s]'); save them as integers: array.view('i8')");
  CHECK(verdict("void.npy") ==
        "UNS void.npy: byte offset 20: the array's elements are raw bytes" + wanted + "'|V3'); save numbers: array.astype('f4')");
  CHECK(verdict("bfloat16.npy") == "UNS bfloat16.npy: byte offset 20: the array's elements are raw bytes" + wanted +
                                       "'<V2'); if they were bfloat16 (NumPy forgets the type), save array.astype('f4'), or write safetensors");
  CHECK(verdict("longdouble.npy") ==
        "UNS longdouble.npy: byte offset 20: the array has an unsupported type" + wanted + "'<f16'); save it with another type: array.astype('f4')");
}

TEST_CASE("headers that other writers make", "[format]") {
  const std::string data(24, '\1');
  for (const std::string_view dictionary :
       {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", "{\"shape\":(2,3),\"fortran_order\":False,\"descr\":\"=f4\"}  \n",
        "  {\n'fortran_order' : True ,'descr': '<f4','shape': ( 2L , 3L )\t}\n", "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 3,), }"}) {
    INFO(dictionary);
    const auto read = ts::read_npy(file_of(npy_bytes(dictionary, data), "a.npy"));
    REQUIRE(read);
    CHECK(read->entries()[0].tensor.shape() == ts::shape_type{2, 3});
  }
}

TEST_CASE("write_npz gives what read_npz reads, aligned, the same bytes for any number of threads", "[format]") {
  const support::temp_folder folder;
  ts::catalog tensors;
  for (const dtype type : {dtype::boolean, dtype::i8, dtype::i16, dtype::i32, dtype::i64, dtype::u8, dtype::u16, dtype::u32, dtype::u64, dtype::f16,
                           dtype::f32, dtype::f64, dtype::c64, dtype::c128}) {
    const std::string name = "all/" + std::string(ts::name_of(type));
    REQUIRE(tensors.add(name, ts::in_memory({name, type, {11, 5, 7}}, expected_bytes(type, 385)), name));
  }
  REQUIRE(tensors.add("scalar", ts::in_memory({"scalar", dtype::f32, {}}, expected_bytes(dtype::f32, 1)), "scalar"));
  REQUIRE(tensors.add("empty", ts::in_memory({"empty", dtype::f32, {3, 0}}, {}), "empty"));
  REQUIRE(tensors.add("vector", ts::in_memory({"vector", dtype::i64, {9}}, expected_bytes(dtype::i64, 9)), "vector"));
  REQUIRE(tensors.add("half", *ts::cast(tensors.find("all/f32")->tensor, dtype::f16), "half"));
  REQUIRE(tensors.add("again", tensors.find("vector")->tensor, "again"));
  REQUIRE(tensors.add("größe", *ts::reshaped(tensors.find("all/i32")->tensor, {11, 35}), "größe"));

  ts::job run;
  run.threads = 1;
  const auto first = ts::write_npz(tensors, folder / "a.npz", run, {.verify = true});
  REQUIRE(first);
  const std::string bytes = read_file(folder / "a.npz");
  CHECK(*first == bytes.size());
  for (const unsigned threads : {2u, 5u}) {
    run.threads = threads;
    run.tile_bytes = 256;
    REQUIRE(ts::write_npz(tensors, folder / "b.npz", run, {.force = true}));
    CHECK(read_file(folder / "b.npz") == bytes);
  }
  auto file = ts::open_file(folder / "a.npz");
  REQUIRE(file);
  CHECK(ts::looks_like_npz(**file));
  const auto read = ts::read_npz(*file);
  REQUIRE(read);
  CHECK(read->ignored.empty());
  REQUIRE(read->tensors.size() == tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const ts::catalog_entry &before = tensors.entries()[i], &after = read->tensors.entries()[i];
    CHECK(before.name == after.name);
    CHECK(before.tensor.type() == after.tensor.type());
    CHECK(before.tensor.shape() == after.tensor.shape());
    CHECK(bytes_of(before.tensor) == bytes_of(after.tensor));
    const auto stored = after.tensor.source->stored();
    REQUIRE(stored);
    CHECK(stored->offset % 64 == 0);
  }
  CHECK(ts::write_npz(tensors, folder / "a.npz", run).error().message() ==
        "PTH " + (folder / "a.npz") + ": the output file already exists; pass --force to replace it, or choose another path");
  CHECK(read_file(folder / "a.npz") == bytes);
}

TEST_CASE("write_npz refuses what NumPy cannot hold", "[format]") {
  const auto verdict = [](const std::string& name, dtype type) {
    ts::catalog tensors;
    REQUIRE(tensors.add("x", ts::in_memory({"x", dtype::u8, {1}}, std::vector<std::byte>(1)), "x"));
    REQUIRE(tensors.add(name, ts::in_memory({name, type, {8}}, std::vector<std::byte>(ts::byte_count(type, 8))), name));
    const auto plan = ts::npz_layout::plan(tensors);
    return plan ? std::string("accepted") : plan.error().message();
  };
  CHECK(ts::npz_layout::plan({}).error().message() == "MIS there are no tensors to write");
  for (const dtype type : {dtype::bf16, dtype::f8_e4m3, dtype::f8_e5m2, dtype::f8_e8m0, dtype::i4, dtype::f4_e2m1})
    CHECK(verdict("a", type) ==
          "UNS tensor 'a': NumPy has no element type " + std::string(ts::name_of(type)) + "; cast it first, or write .safetensors");
  for (const std::string& name : {std::string("/a"), std::string("a//b"), std::string("a/"), std::string("../a"), std::string("./a")})
    CHECK(verdict(name, dtype::u8) ==
          "MIS tensor " + ts::quoted(name) +
              ": a tensor cannot have this name in a .npz file (expected a path without empty, '.' or '..' parts); rename it");
  CHECK(verdict("a\\b", dtype::u8).starts_with("MIS tensor 'a\\b': a tensor cannot have this name"));
  CHECK(verdict("a\xFF", dtype::u8).starts_with("MIS tensor 'a\\xff': a tensor cannot have this name"));
  CHECK(verdict("c:a", dtype::u8).starts_with("MIS tensor 'c:a': a tensor cannot have this name"));
  CHECK(verdict(std::string(70000, 'n'), dtype::u8).find("expected at most 65000 bytes") != std::string::npos);
  CHECK(verdict("x.npy", dtype::u8).find("expected a name that numpy.load can tell from 'x'") != std::string::npos);
  for (const std::string name : {"..", ".", "a.npy", "", "-", " "}) CHECK(verdict(name, dtype::u8) == "accepted");
}

TEST_CASE("a deflated array that two tensors use is inflated while one of them needs it", "[format]") {
  const std::string data(4096, '\5');
  const auto read = ts::read_npz(file_of(zip_bytes({{"a.npy", npy_bytes("|u1", "(64, 64)", data), true}}), "a.npz"));
  REQUIRE(read);
  const auto tensor = read->tensors.entries()[0].tensor;
  CHECK(tensor.source->prepared_bytes() > 4096);
  CHECK_FALSE(tensor.source->stored());
  const auto turned = ts::transposed(tensor);
  ts::job run;
  REQUIRE(tensor.source->prepare(run));
  REQUIRE(turned->source->prepare(run));
  tensor.source->release();
  ts::scratch memory;
  CHECK(turned->source->load({0, 64, 0, 64}, memory));
  turned->source->release();
  CHECK_FALSE(turned->source->load({0, 64, 0, 64}, memory));
  CHECK(bytes_of(tensor) == std::vector<std::byte>(4096, std::byte{5}));
}
