// SPDX-License-Identifier: MIT
//
// Damaged and hostile checkpoints of old torch: legacy streams, tar files, bare pickles. Nothing runs, nothing is extracted,
// refusals are one sentence.
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "../format/torch_bytes.hpp"
#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/format/torch/read.hpp"
#include "tensorsmith/io/file.hpp"
#include "tensorsmith/tensor/executor.hpp"

namespace ts = tensorsmith;
using namespace torch_bytes;
using Catch::Matchers::StartsWith;

namespace {

const std::string magic = "\x80\x02\x8A\x0A\x6C\xFC\x9C\x46\xF9\x20\x6A\xA8\x50\x19\x2E";

std::string pair(const std::string& key, const std::string& v) { return text(key) + v + "s"; }
std::string sizes(int long_bytes = 4) {
  return "}" + pair("short", "K\x02") + pair("int", "K\x04") + pair("long", "K" + std::string(1, static_cast<char>(long_bytes)));
}
std::string system_info(const std::string& little = "\x88", const std::string& type_sizes = sizes(), int protocol = 1001) {
  return program("}" + pair("protocol_version", integer(protocol)) + pair("little_endian", little) + pair("type_sizes", type_sizes));
}
/// The persistent id of a legacy stream: the six fields, `view` as it is pickled.
std::string legacy_storage(const std::string& key, std::int64_t numel, const std::string& view = "N", const std::string& type = "FloatStorage") {
  return "(" + text("storage") + global("torch", type) + text(key) + text("cpu") + integer(numel) + view + "tQ";
}
std::string legacy_tensor(const std::string& storage, std::int64_t offset, const std::vector<std::int64_t>& size,
                          const std::vector<std::int64_t>& stride) {
  return global("torch._utils", "_rebuild_tensor_v2") + "(" + storage + integer(offset) + tuple(size) + tuple(stride) + "\x89" +
         global("collections", "OrderedDict") + ")RtR";
}
std::string keys(const std::vector<std::string>& names) {
  std::string out = "](";
  for (const std::string& name : names) out += text(name);
  return program(out + "e");
}
std::string raw(const std::string& data, std::uint64_t numel) { return le(numel, 8) + data; }

struct legacy {
  std::string protocol = program(integer(1001)), system = system_info(), object, key_list, data{};
  std::string bytes() const { return magic + protocol + system + object + key_list + data; }
};
/// Three tensors in two storages: "a" float32[2, 3], "b" the same transposed, "c" int64[2].
legacy good() {
  return {.object = program("}" + pair("a", legacy_tensor(legacy_storage("20", 6), 0, {2, 3}, {3, 1})) +
                            pair("b", legacy_tensor(legacy_storage("20", 6), 0, {3, 2}, {1, 3})) +
                            pair("c", legacy_tensor(legacy_storage("10", 2, "N", "LongStorage"), 0, {2}, {1}))),
          .key_list = keys({"10", "20"}),
          .data = raw(le(7, 8) + le(9, 8), 2) + raw(floats(6), 6)};
}
std::string verdict(const std::string& bytes, const ts::limits& bounds = {}) {
  const auto c = ts::read_torch(source(bytes), bounds);
  if (!c) return c.error().message();
  for (const auto& e : c.value().tensors.entries())
    if (const auto data = ts::materialize(e.tensor, {}); !data) return data.error().message();
  return "ok";
}
std::string verdict(const legacy& file) { return verdict(file.bytes()); }
std::string bytes_of(const ts::torch_checkpoint& c, const std::string& name) {
  const auto* const e = c.tensors.find(name);
  REQUIRE(e != nullptr);
  const auto b = ts::materialize(e->tensor, {});
  REQUIRE(b);
  return {reinterpret_cast<const char*>(b.value().data()), b.value().size()};
}

/// A source of a front and then one byte for ever; counts what is read from it.
class endless_source final : public ts::byte_source {
 public:
  endless_source(std::string front, char rest, std::uint64_t size) : front_(std::move(front)), rest_(rest), size_(size) {}
  std::uint64_t size() const noexcept override { return size_; }
  const std::string& name() const noexcept override { return name_; }
  ts::result<void> read_at(std::uint64_t offset, std::span<std::byte> out) const override {
    read += out.size();
    for (std::size_t i = 0; i < out.size(); ++i)
      out[i] = static_cast<std::byte>(offset + i < front_.size() ? front_[static_cast<std::size_t>(offset + i)] : rest_);
    return {};
  }
  mutable std::atomic<std::uint64_t> read{0};

 private:
  std::string front_, name_ = "m.ckpt";
  char rest_;
  std::uint64_t size_;
};

std::string header(const std::string& name, std::uint64_t size, char kind = '0', const std::string& link = {}) {
  std::string out(512, '\0');
  const auto put = [&](std::size_t at, const std::string& value) { out.replace(at, value.size(), value); };
  const auto octal = [](std::uint64_t value, std::size_t width) {
    std::string digits(width, '0');
    for (std::size_t i = width; i-- > 0; value /= 8) digits[i] = static_cast<char>('0' + value % 8);
    return digits;
  };
  put(0, name), put(100, "0000644"), put(124, octal(size, 11)), put(136, octal(0, 11));
  put(148, "        "), put(157, link), put(257, "ustar\00000"_s);
  out[156] = kind;
  std::uint64_t sum = 0;
  for (const char c : out) sum += static_cast<unsigned char>(c);
  put(148, octal(sum, 6) + "\0 "_s);
  return out;
}
std::string member(const std::string& name, const std::string& data, char kind = '0', const std::string& link = {}) {
  return header(name, data.size(), kind, link) + data + std::string((512 - data.size() % 512) % 512, '\0');
}
const std::string tar_end(1024, '\0');

struct tar {
  std::string system = system_info("\x88", sizes(), 1000);
  std::string pickle = program("}" + pair("w", integer(5) + "Q"));
  std::string tensors = program(integer(1)) + program("(" + integer(5) + integer(1) + global("torch", "FloatTensor") + "t") + le(2, 4) +
                        le(0, 4) + le(2, 8) + le(3, 8) + le(3, 8) + le(1, 8) + le(0, 8);
  std::string storages = program(integer(1)) + program("(" + integer(1) + text("cpu") + global("torch", "FloatStorage") + "t") + le(6, 8) +
                         floats(6) + program("]");
  std::string extra{};
  std::string bytes() const {
    return member("sys_info", system) + member("pickle", pickle) + member("tensors", tensors) + member("storages", storages) + extra + tar_end;
  }
};

/// An array of numpy as protocol 2 pickles it.
std::string dtype(const std::string& name, const std::string& order = "<") {
  return global("numpy", "dtype") + "(" + text(name) + "\x89\x88tR(K\x03" + text(order) + "NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"_s;
}
std::string array(const std::string& type, const std::vector<std::int64_t>& shape, const std::string& bytes, bool fortran = false) {
  return global("numpy.core.multiarray", "_reconstruct") + global("numpy", "ndarray") + tuple({0}) + "C\x01" "b\x87R(K\x01" + tuple(shape) +
         type + (fortran ? "\x88" : "\x89") + "B" + le(bytes.size(), 4) + bytes + "tb";
}

}  // namespace

TEST_CASE("a legacy stream that is right") {
  const auto c = ts::read_torch(source(good().bytes()));
  REQUIRE(c);
  CHECK(bytes_of(c.value(), "a") == floats(6));
  CHECK(bytes_of(c.value(), "b") == floats(1) + floats(4).substr(12) + floats(2).substr(4) + floats(5).substr(16) + floats(3).substr(8) +
                                        floats(6).substr(20));
  CHECK(bytes_of(c.value(), "c") == le(7, 8) + le(9, 8));
}

TEST_CASE("LEG-01: other protocols of the legacy stream") {
  const auto with = [](const std::string& protocol) {
    legacy file = good();
    file.protocol = protocol;
    return verdict(file);
  };
  CHECK(with(program(integer(1000))) ==
        "UNS m.ckpt: byte offset 15: the protocol of the legacy stream is not known (expected 1001, found 1000)");
  CHECK(with(program(integer(1002))) ==
        "UNS m.ckpt: byte offset 15: the protocol of the legacy stream is not known (expected 1001, found 1002)");
  CHECK(with(program("\x8a\x0a\1\1\1\1\1\1\1\1\1\1")) ==
        "UNS m.ckpt: byte offset 15: the protocol of the legacy stream is not known (expected 1001, found a large integer)");
  CHECK_THAT(with(program("]")), StartsWith("UNS") && Contains("found a list"));
}

TEST_CASE("LEG-02: what the file says of its machine") {
  const auto with = [](const std::string& system) {
    legacy file = good();
    file.system = system;
    return verdict(file);
  };
  // Storages are little-endian on every host: the same bytes, and a note.
  legacy big = good();
  big.system = system_info("\x89");
  const auto c = ts::read_torch(source(big.bytes()));
  REQUIRE(c);
  CHECK(bytes_of(c.value(), "a") == floats(6));
  CHECK(c.value().notes[0].text ==
        "The file was written on a big-endian machine; its storages are little-endian, as torch writes them everywhere.");
  CHECK(with(program("}" + pair("protocol_version", integer(1001)) + pair("type_sizes", sizes()))) ==
        "UNS m.ckpt: byte offset 28: the file describes a system that torch does not know, by 'little_endian' (expected a boolean, found "
        "nothing)");
  CHECK_THAT(with(system_info("K\x01")), StartsWith("UNS") && Contains("'little_endian' (expected a boolean, found 1)"));
  CHECK_THAT(with(system_info("\x88", sizes(), 1002)), StartsWith("UNS") && Contains("'protocol_version' (expected 1001, found 1002)"));
  CHECK_THAT(with(system_info("\x88", "N")), StartsWith("UNS") && Contains("'type_sizes' (expected a dict, found None)"));
  CHECK_THAT(with(system_info("\x88", "}")), StartsWith("UNS") && Contains("'short' (expected 2, found nothing)"));
  CHECK(with(system_info("\x88", sizes(8))) == "ok");
  CHECK_THAT(with(system_info("\x88", sizes(16))), StartsWith("UNS") && Contains("'long' (expected 4 or 8, found 16)"));
  CHECK(with(program("N")) ==
        "FMT m.ckpt: byte offset 28: the pickle does not describe a system (expected a dict, found None)");
}

TEST_CASE("LEG-03: the list of keys rules") {
  legacy file = good();
  file.key_list = keys({"20", "10"});  // not sorted: the data follow the list
  file.data = raw(floats(6), 6) + raw(le(7, 8) + le(9, 8), 2);
  const auto c = ts::read_torch(source(file.bytes()));
  REQUIRE(c);
  CHECK(bytes_of(c.value(), "a") == floats(6));
  CHECK(bytes_of(c.value(), "c") == le(7, 8) + le(9, 8));
  const auto with = [](const std::string& list) {
    legacy changed = good();
    changed.key_list = list;
    return verdict(changed);
  };
  CHECK(with(keys({"10"})) ==
        "FMT m.ckpt: storage '20': the list of keys lacks a storage of the pickle (expected 2 keys, found 1)");
  CHECK(with(keys({"10", "20", "30"})) ==
        "FMT m.ckpt: storage '30': the list of keys names a storage that the pickle does not (expected a key of the pickle, found '30')");
  CHECK(with(keys({"10", "10", "20"})) ==
        "FMT m.ckpt: storage '10': the list of keys names the storage twice (expected once, found twice)");
  CHECK(with(program("](" + integer(10) + "e")) == "FMT m.ckpt: key pickle: a storage key is no string (expected a string, found 10)");
  CHECK(with(program("}")) == "FMT m.ckpt: key pickle: the storage keys are no list (expected a list, found a dict)");
}

TEST_CASE("LEG-04: the length before a storage") {
  const auto with = [](std::uint64_t numel) {
    legacy file = good();
    file.data = raw(le(7, 8) + le(9, 8), 2) + raw(floats(6), numel);
    return verdict(file);
  };
  const std::string at = std::to_string(good().bytes().size() - 32);
  const std::string front = "FMT m.ckpt: storage '20', byte offset " + at + ": the storage has another number of elements than the pickle says ";
  CHECK(with(6) == "ok");
  CHECK(with(5) == front + "(expected 6, found 5)");
  CHECK(with(~std::uint64_t{0}) == front + "(expected 6, found -1)");
  CHECK(with(std::uint64_t{1} << 60) == front + "(expected 6, found 1152921504606846976)");
  legacy both = good();  // the pickle says so, too
  both.object = program("}" + pair("a", legacy_tensor(legacy_storage("20", std::int64_t{1} << 60), 0, {2}, {1})));
  both.key_list = keys({"20"});
  both.data = raw(floats(6), std::uint64_t{1} << 60);
  CHECK_THAT(verdict(both), StartsWith("FMT m.ckpt: storage '20': the file ends inside the storage (expected 4611686018427387904 bytes at byte "
          "offset ") &&
                                Contains("found 24); is the download incomplete?"));
}

TEST_CASE("LEG-05: cut at every byte") {
  const std::string whole = good().bytes();
  CHECK(verdict(whole) == "ok");
  for (std::size_t n = 0; n < whole.size(); ++n) {
    const auto c = ts::read_torch(source(whole.substr(0, n)));
    INFO(n);
    REQUIRE_FALSE(c);
    CHECK((c.error().code == ts::errc::malformed || (n < 15 && c.error().code == ts::errc::unsupported)));
  }
  CHECK(verdict(whole.substr(0, whole.size() - 1)) == "FMT m.ckpt: storage '20': the file ends inside the storage (expected 24 bytes at byte "
          "offset " +
                                                          std::to_string(whole.size() - 24) + ", found 23); is the download incomplete?");
}

TEST_CASE("LEG-06: tar files with links, paths and strangers") {
  CHECK(verdict(tar{}.bytes()) == "ok");
  const auto with = [](const std::string& extra) {
    tar file;
    file.extra = extra;
    return verdict(file.bytes());
  };
  const std::string at = std::to_string(tar{}.bytes().size() - 1024);
  CHECK(with(member("tensors", "", '2', "/etc/passwd")) ==
        "UNS m.ckpt: byte offset " + at + ": the tar archive holds a link (expected plain files, found 'tensors' to '/etc/passwd')");
  CHECK_THAT(with(member("other", "", '1', "storages")), StartsWith("UNS") && Contains("holds a link"));
  CHECK(with(member("../../evil", "x")) == "UNS m.ckpt: byte offset " + at +
                                               ": the tar archive is no torch checkpoint (expected 'sys_info', 'pickle', 'tensors', 'storages', "
                                               "found '../../evil')");
  CHECK_THAT(with(member("/abs", "x")), StartsWith("UNS") && Contains("'/abs'"));
  CHECK_THAT(with(member("folder/", "", '5')), StartsWith("UNS") && Contains("no plain file") && Contains("of type '5'"));
  CHECK_THAT(with(member("fifo", "", '6')), StartsWith("UNS"));
  CHECK_THAT(with(member("././@LongLink", "storages", 'L')), StartsWith("UNS"));
  CHECK_THAT(with(member("x", "19 path=../../evil\n", 'x')), StartsWith("UNS") && Contains("the extended header changes what torch never changes"));
  CHECK_THAT(with(member("x", "99 mtime=1\n", 'x')), StartsWith("FMT") && Contains("the extended header is damaged"));
  CHECK_THAT(with(member("x", "11 mtime=1\n", 'x')), StartsWith("FMT") && Contains("describes no member"));
  CHECK_THAT(with(member("x", "11 mtime=1\n", 'x') + member("x", "11 mtime=1\n", 'x')), StartsWith("FMT") && Contains("follows another"));
  CHECK_THAT(with(member("pickle", "twice")), StartsWith("FMT") && Contains("two members of one name"));
  CHECK(verdict(member("notes.txt", "hello") + tar_end).substr(0, 60) == "UNS m.ckpt: byte offset 0: the tar archive is no torch check");
}

TEST_CASE("LEG-06: damaged tar files") {
  const std::string whole = tar{}.bytes();
  for (std::size_t n = 300; n < whole.size(); n += 37) {
    INFO(n);
    const auto c = ts::read_torch(source(whole.substr(0, n)));
    if (n + 512 > whole.size()) continue;  // one block of zeros is an end, too
    REQUIRE_FALSE(c);
    CHECK(c.error().code == ts::errc::malformed);
  }
  std::string sum = whole;
  sum[3] = 'X';
  CHECK_THAT(verdict(sum), StartsWith("FMT") && Contains("the tar header is damaged"));
  CHECK_THAT(verdict(whole + "behind"), StartsWith("FMT") && Contains("something follows the end of the tar archive"));
  const auto with = [](auto change) {
    tar file;
    change(file);
    return verdict(file.bytes());
  };
  CHECK_THAT(with([](tar& f) { f.system = system_info("\x88", sizes(), 1001); }), StartsWith("UNS") && Contains("expected 1000"));
  CHECK_THAT(with([](tar& f) { f.pickle += "more"; }), StartsWith("FMT") && Contains("bytes follow the end of the data"));
  CHECK_THAT(with([](tar& f) { f.pickle = program("}" + pair("w", integer(6) + "Q")); }),
             StartsWith("FMT m.ckpt: tar member 'pickle', tensor 'w': the tensor is not described"));
  CHECK_THAT(with([](tar& f) { f.pickle = program("}" + pair("w", integer(1) + "Q")); }), StartsWith("UNS"));
  CHECK_THAT(with([](tar& f) { f.tensors.replace(f.tensors.size() - 8, 8, le(1, 8)); }), StartsWith("FMT") && Contains("reaches past its storage"));
  CHECK_THAT(with([](tar& f) { f.tensors.replace(f.tensors.size() - 8, 8, le(~std::uint64_t{0}, 8)); }), StartsWith("FMT") && Contains("offset "
          "is wrong"));
  CHECK_THAT(with([](tar& f) { f.tensors = program(integer(std::int64_t{1} << 60)); }), StartsWith("LIM") && Contains("--max-tensors"));
  CHECK_THAT(with([](tar& f) { f.tensors = program(integer(2)) + f.tensors.substr(program(integer(1)).size()); }), StartsWith("FMT"));
  CHECK_THAT(with([](tar& f) { f.storages = f.storages.substr(0, f.storages.size() - 10); }), StartsWith("FMT"));
  CHECK_THAT(with([](tar& f) { f.storages += "x"; }), StartsWith("FMT") && Contains("bytes follow the end"));
}

TEST_CASE("LEG-07: bare pickles of numpy arrays") {  // read, not refused; what holds no array of numbers is refused
  const auto c = ts::read_torch(source(program("}" + pair("w", array(dtype("f4"), {2, 3}, floats(6))) + pair("n", integer(3)))));
  REQUIRE(c);
  CHECK(bytes_of(c.value(), "w") == floats(6));
  CHECK(c.value().scalars.size() == 1);
  CHECK(verdict(program("}" + pair("n", integer(3)))) ==
        "UNS m.ckpt: pickle, byte offset 2: the checkpoint holds no tensors (expected a dict of tensors, found keys 'n')");
  CHECK_THAT(verdict(program("}" + pair("w", array(dtype("O8", "|"), {1}, "12345678")))), StartsWith("UNS") && Contains("holds no tensors"));
  CHECK_THAT(verdict(program("}" + pair("w", array(dtype("f4"), {2, 4}, floats(6))))),
             StartsWith("FMT") && Contains("tensor 'w': the array has other bytes than its shape needs (expected 32 bytes, found 24)"));
  CHECK_THAT(verdict(program("}" + pair("w", array(dtype("f4"), {-1}, floats(6))))), StartsWith("FMT") && Contains("the tensor's shape is wrong"));
  CHECK_THAT(verdict(program("}" + pair("w", array(dtype("f4"), {std::int64_t{1} << 40, std::int64_t{1} << 40}, floats(6))))), StartsWith("LIM"));
  CHECK_THAT(verdict(program("}" + pair("w", array(dtype("f4"), {6}, floats(6)))) + "more"), StartsWith("FMT") && Contains("4 trailing bytes "
          "follow STOP"));
  CHECK_THAT(verdict(program("}" + pair("w", value({})))),
             StartsWith("UNS") && Contains("the pickle refers to data outside of itself") && Contains("open the file of torch.save"));
  CHECK_THAT(verdict(program(global("os", "system") + text("id") + "\x85R")), StartsWith("UNS") && Contains("'os.system'"));
  // A tensor of pickle.dump: its storage is a legacy stream of its own, as bytes.
  const auto packed = [](const std::string& stream) {
    return program("}" + pair("w", legacy_tensor(global("torch.storage", "_load_from_bytes") + "B" + le(stream.size(), 4) + stream + "\x85R", 0,
                                                 {2, 3}, {3, 1})));
  };
  const legacy storage{.object = program(legacy_storage("1", 6)), .key_list = keys({"1"}), .data = raw(floats(6), 6)};
  const auto unpacked = ts::read_torch(source(packed(storage.bytes())));
  REQUIRE(unpacked);
  CHECK(bytes_of(unpacked.value(), "w") == floats(6));
  CHECK(verdict(packed("any bytes")) ==
        "UNS m.ckpt: byte offset 80: there is no legacy stream (expected torch's magic number, found 9 other bytes)");
  CHECK(verdict(packed("")).substr(0, 3) == "UNS");
  legacy other = storage;
  other.object = program("}" + pair("a", legacy_storage("1", 6)));
  CHECK(verdict(packed(other.bytes())) == "FMT m.ckpt: object pickle: the packed storage is something else (expected a storage, found a dict)");
  for (std::size_t n = 0; n < storage.bytes().size(); ++n)
    CHECK_THAT(verdict(packed(storage.bytes().substr(0, n))), StartsWith("FMT") || StartsWith("UNS"));
  CHECK_THAT(verdict(checkpoint(packed(storage.bytes()))), StartsWith("UNS") && Contains("'torch.storage._load_from_bytes', which no weight file "
          "needs"));
  const std::string whole = program("}" + pair("w", array(dtype("f4"), {2, 3}, floats(6))));
  for (std::size_t n = 2; n < whole.size(); ++n) CHECK_THAT(verdict(whole.substr(0, n)), StartsWith("FMT"));
}

TEST_CASE("LEG-08: pickles without end") {
  const std::uint64_t size = 1u << 30;
  const auto start = std::chrono::steady_clock::now();
  for (const std::string& front : {magic + "\x80\x02", magic + program(integer(1001)) + "\x80\x02", magic + program(integer(1001)) +
          system_info() + "\x80\x02}",
                                   std::string("\x80\x02")}) {
    const auto nones = std::make_shared<endless_source>(front, 'N', size);
    const auto c = ts::read_torch(nones);
    REQUIRE_FALSE(c);
    CHECK_THAT(c.error().message(), StartsWith("LIM m.ckpt: ") && Contains("the pickle has too many opcodes (expected 5000000 at most, found "
            "more); raise "
                                                                          "it with --max-pickle-opcodes"));
    CHECK(nones->read < (17u << 20));  // a window that doubles
  }
  const auto text_without_end = std::make_shared<endless_source>(magic + "\x80\x02X" + le(1u << 29, 4), 'x', size);
  const auto c = ts::read_torch(text_without_end);
  REQUIRE_FALSE(c);
  CHECK(c.error().message() ==
        "LIM m.ckpt: protocol pickle: the pickle does not end where it should (expected an end within 67108864 bytes, found more); raise it with "
        "--max-pickle");
  CHECK(text_without_end->read < (129u << 20));
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(20));
}

TEST_CASE("LEG-09: a file of 20 GB is opened without reading it") {
  const support::temp_folder folder;
  const std::string path = folder / "large.ckpt";
  constexpr std::int64_t rows = 1'300'000, columns = 4096;  // 21.3 GB
  const std::string front = legacy{.object = program("}" + pair("large", legacy_tensor(legacy_storage("1", rows * columns), 0, {rows, columns},
          {columns, 1})) +
                                                     pair("last", legacy_tensor(legacy_storage("2", 6), 0, {2, 3}, {3, 1}))),
                                   .key_list = keys({"1", "2"})}
                                .bytes() +
                            le(rows * columns, 8);
  const std::string tail = raw(floats(6), 6);
  const std::uint64_t large = static_cast<std::uint64_t>(rows * columns) * 4;
  const int fd = ::open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
  REQUIRE(fd >= 0);
  REQUIRE(::ftruncate(fd, static_cast<off_t>(front.size() + large + tail.size())) == 0);
  REQUIRE(::pwrite(fd, front.data(), front.size(), 0) == static_cast<ssize_t>(front.size()));
  REQUIRE(::pwrite(fd, tail.data(), tail.size(), static_cast<off_t>(front.size() + large)) == static_cast<ssize_t>(tail.size()));
  ::close(fd);
  const auto start = std::chrono::steady_clock::now();
  const auto file = ts::open_file(path);
  REQUIRE(file);
  const auto c = ts::read_torch(file.value());
  REQUIRE(c);
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(1));
  CHECK(c.value().tensors.bytes() == large + 24);
  CHECK(c.value().tensors.find("large")->tensor.shape() == ts::shape_type{rows, columns});
  CHECK(bytes_of(c.value(), "last") == floats(6));
}

TEST_CASE("LEG-10: parts of storages") {
  const auto view = [](const std::string& key, std::int64_t offset, std::int64_t numel) {
    return "(" + text(key) + integer(offset) + integer(numel) + "t";
  };
  const auto with = [&](const std::string& a, const std::string& b) {
    return legacy{.object = program("}" + pair("a", legacy_tensor(legacy_storage("1", 6, a), 0, {2}, {1})) +
                                    pair("b", legacy_tensor(legacy_storage("1", 6, b), 1, {1}, {1}))),
                  .key_list = keys({"1"}),
                  .data = raw(floats(6), 6)};
  };
  const auto c = ts::read_torch(source(with(view("v", 2, 3), view("w", 4, 2)).bytes()));
  REQUIRE(c);
  CHECK(bytes_of(c.value(), "a") == floats(4).substr(8));
  CHECK(bytes_of(c.value(), "b") == floats(6).substr(20));
  CHECK_THAT(verdict(with(view("v", 5, 2), "N")),
             StartsWith("FMT") && Contains("part 'v' reaches past storage '1' (expected 6 elements, found 2 from element 5)"));
  CHECK_THAT(verdict(with(view("v", 4, 1), "N")), StartsWith("FMT") && Contains("the tensor reaches past its storage (expected elements below 1"));
  CHECK_THAT(verdict(with(view("v", 0, 3), view("v", 1, 3))), StartsWith("FMT") && Contains("part 'v' of a storage is declared twice in "
          "different ways"));
  CHECK_THAT(verdict(with(view("v", -1, 3), "N")), StartsWith("FMT") && Contains("field 5 (view) of the persistent id is wrong"));
  CHECK_THAT(verdict(with(view("v", std::numeric_limits<std::int64_t>::max(), std::numeric_limits<std::int64_t>::max()), "N")), StartsWith("FMT"));
  CHECK_THAT(verdict(with("]", "N")), StartsWith("FMT") && Contains("field 5 (view)"));
}

TEST_CASE("LEG-11: the first bytes decide, and nothing else may be in the file") {
  const std::string archive = checkpoint(one({}));
  CHECK_THAT(verdict(good().bytes() + archive), StartsWith("FMT") && Contains("bytes follow the last storage"));
  CHECK_THAT(verdict(archive + good().bytes()), StartsWith("FMT") && Contains("the zip archive does not end with its end record"));
  CHECK_THAT(verdict(program("}" + pair("w", array(dtype("f4"), {6}, floats(6)))) + archive), StartsWith("FMT") && Contains("trailing bytes"));
}

TEST_CASE("a legacy stream whose storages contradict each other") {
  legacy file = good();
  file.object = program("}" + pair("a", legacy_tensor(legacy_storage("20", 6), 0, {2, 3}, {3, 1})) +
                        pair("b", legacy_tensor(legacy_storage("20", 5), 0, {2}, {1})) +
                        pair("c", legacy_tensor(legacy_storage("10", 2, "N", "LongStorage"), 0, {2}, {1})));
  CHECK_THAT(verdict(file), StartsWith("FMT m.ckpt: object pickle, byte offset ") && Contains("storage '20' is declared twice in different ways "
          "(expected 6 "
                                                                                              "elements of 'torch.FloatStorage', found 5 of "
                                                                                                      "'torch.FloatStorage')"));
}
