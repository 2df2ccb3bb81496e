// SPDX-License-Identifier: MIT
//
// Damaged and hostile pickles of torch checkpoints: nothing runs, nothing is dropped in silence, refusals are one sentence.
#include <string>
#include <vector>

#include "../format/torch_bytes.hpp"
#include "support/catch.hpp"
#include "tensorsmith/format/torch/read.hpp"
#include "tensorsmith/tensor/executor.hpp"

namespace ts = tensorsmith;
using namespace torch_bytes;
using Catch::Matchers::StartsWith;

namespace {

ts::result<ts::pickle_document> parse(const std::string& bytes, const ts::limits& bounds = {}) {
  std::vector<std::byte> copy(bytes.size());
  if (!bytes.empty()) std::memcpy(copy.data(), bytes.data(), bytes.size());
  return ts::parse_pickle(std::make_shared<const std::vector<std::byte>>(std::move(copy)), "m.ckpt", "", bounds);
}
/// The message of parsing `bytes`, or "ok".
std::string parsed(const std::string& bytes, const ts::limits& bounds = {}) {
  const auto doc = parse(bytes, bounds);
  return doc ? "ok" : doc.error().message();
}
/// The same of a body between PROTO 2 and STOP.
std::string body(const std::string& opcodes, const ts::limits& bounds = {}) { return parsed(program(opcodes), bounds); }
/// The message of reading a checkpoint with this pickle, or "ok".
std::string loaded(const std::string& pickle, const std::string& data = floats(6), const ts::limits& bounds = {}) {
  const auto c = ts::read_torch(source(checkpoint(pickle, data)), bounds);
  return c ? "ok" : c.error().message();
}
std::string pair(const std::string& key, const std::string& v) { return text(key) + v + "s"; }
std::string repeated(const std::string& what, std::size_t times) {
  std::string out;
  out.reserve(what.size() * times);
  for (std::size_t i = 0; i < times; ++i) out += what;
  return out;
}

}  // namespace

TEST_CASE("PKL-01: globals that could run code are refused wherever they stand") {
  const std::string system = "cposix\nsystem\n", call = system + "(X\x02\0\0\0idtR"_s;
  CHECK(body(call) ==
        "UNS m.ckpt: opcode GLOBAL (0x63) at byte offset 2: the pickle names 'posix.system', which no weight file needs "
        "(expected names of tensors and "
        "containers, found a way to run code); nothing was run; --allow-suspicious reads the weights all the same");
  CHECK_THAT(body(call + "0N"), StartsWith("UNS") && Contains("'posix.system'"));                     // a dead branch
  CHECK_THAT(body("}" + text("a") + call + "s"), StartsWith("UNS") && Contains("at byte offset 9"));  // a value
  CHECK_THAT(parsed("\x80\x04\x8c\x05posix\x8c\x06system\x93N\x85R."),
             StartsWith("UNS") && Contains("STACK_GLOBAL (0x93) at byte offset 17"));
  CHECK_THAT(body("(X\x02\0\0\0idiposix\nsystem\n"_s), StartsWith("UNS") && Contains("INST"));
  CHECK_THAT(body("(" + system + "X\x02\0\0\0ido"_s), StartsWith("UNS"));
  CHECK_THAT(body(system + ")\x81"), StartsWith("UNS"));
  CHECK_THAT(body("\x82\x01"), StartsWith("UNS") && Contains("EXT1 (0x82) at byte offset 2"));
  for (const auto& [module, name] : std::vector<std::pair<std::string, std::string>>{{"__builtin__", "eval"},
                                                                                     {"builtins", "exec"},
                                                                                     {"builtins", "getattr"},
                                                                                     {"os", "popen"},
                                                                                     {"os.path", "join"},
                                                                                     {"subprocess", "Popen"},
                                                                                     {"runpy", "run_path"},
                                                                                     {"torch", "load"},
                                                                                     {"torch.hub", "load"},
                                                                                     {"torch.serialization", "os.system"},
                                                                                     {"torch._inductor.codecache", "x"},
                                                                                     {"cPickle", "loads"},
                                                                                     {"operator", "attrgetter"},
                                                                                     {"builtins", "object.__subclasses__"},
                                                                                     {"functools", "partial"},
                                                                                     {"copyreg", "builtins.eval"}})
    CHECK_THAT(body(global(module, name)), StartsWith("UNS") && Contains("names"));
  ts::limits lax;
  lax.allow_suspicious = true;
  CHECK(body(call, lax) == "ok");
}

TEST_CASE("PKL-02: tensors inside unknown objects are not dropped") {
  const std::string inside =
      "}" + pair("w", value({})) + pair("x", global("my.lib", "Wrapper") + value({}) + value({}) + "\x86R");
  CHECK(loaded(program(inside)) ==
        "UNS m.ckpt: zip entry 'archive/data.pkl', byte offset 573: 2 tensors lie inside an opaque object at 'x' (expected a "
        "dict of tensors, found "
        "'my.lib.Wrapper'); save the state_dict of the model alone");
  const std::string state =
      "}" + pair("w", value({})) + pair("x", global("my.lib", "Wrapper") + ")\x81}" + pair("t", value({})) + "b");
  CHECK_THAT(loaded(program(state)), Contains("UNS") && Contains("1 tensor lies inside an opaque object at 'x'"));
  const auto harmless =
      ts::read_torch(source(checkpoint(program("}" + pair("w", value({})) + pair("x", global("my.lib", "Thing") + ")R")))));
  REQUIRE(harmless);
  CHECK(harmless.value().ignored[0].text() == "x: an object of 'my.lib.Thing', classes my.lib.Thing");
}

TEST_CASE("PKL-03: there is no second reader to fall back to") {
  CHECK_THAT(loaded("\x80\x02\xff."),
             StartsWith("FMT m.ckpt: zip entry 'archive/data.pkl', opcode 0xff at byte offset 2: there is no such opcode"));
  CHECK(loaded("\x80\x02\xff.") ==
        "FMT m.ckpt: zip entry 'archive/data.pkl', opcode 0xff at byte offset 2: there is no such opcode (expected an opcode of pickle "
        "protocol 2 to 5, found 0xff)");
}

TEST_CASE("PKL-04: every opcode on stacks of 0, 1, 2 values") {
  for (int depth = 0; depth < 3; ++depth)
    for (int op = 0; op < 256; ++op) {
      const auto doc =
          parse("\x80\x02" + std::string(static_cast<std::size_t>(depth), 'N') + std::string(1, static_cast<char>(op)));
      if (doc) {
        CHECK(op == '.');
        CHECK(depth == 1);
        continue;
      }
      const std::string message = doc.error().message();
      INFO(message);
      CHECK((message.rfind("FMT", 0) == 0 || message.rfind("UNS", 0) == 0));
      CHECK_THAT(message, Contains("byte offset"));
      if (message.find("has no STOP") == message.npos) CHECK_THAT(message, Contains("opcode"));
    }
  CHECK(body("s") ==
        "FMT m.ckpt: opcode SETITEM (0x73) at byte offset 2: the pickle takes values that are not on its stack (expected 3 values, found 0)");
  CHECK(body("NN\xf0") ==
        "FMT m.ckpt: opcode 0xf0 at byte offset 4: there is no such opcode (expected an opcode of pickle protocol 2 to 5, found 0xf0)");
}

TEST_CASE("PKL-05: marks") {
  CHECK_THAT(body("t"), StartsWith("FMT") && Contains("there is no MARK on the stack"));
  CHECK_THAT(body("N1"), StartsWith("FMT") && Contains("there is no MARK"));
  CHECK_THAT(body(repeated("(", 1000000)), StartsWith("LIM") && Contains("nests too deep") && Contains("--max-pickle-depth"));
  CHECK_THAT(body("N(N0000"), StartsWith("FMT"));
  CHECK(body("N(NN1") == "ok");
  CHECK_THAT(body("(N"), StartsWith("FMT") && Contains("1 mark"));
  CHECK(body("t") == "FMT m.ckpt: opcode TUPLE (0x74) at byte offset 2: there is no MARK on the stack (expected a MARK, found none)");
  CHECK(body(repeated("(", 1000000)) ==
        "LIM m.ckpt: opcode MARK (0x28) at byte offset 1026: the pickle nests too deep (expected 1024 marks at most, found more); raise "
        "it with --max-pickle-depth");
}

TEST_CASE("PKL-06: the memo is sparse") {
  CHECK_THAT(body("h\x05"), StartsWith("FMT") && Contains("reads memo 5, which was never set"));
  CHECK(body("Kar\xff\xff\xff\xff"
             "0j\xff\xff\xff\xff") == "ok");
  CHECK(body("Kaq\x09q\x02"
             "0h\x09h\x02\x86") == "ok");
  CHECK_THAT(body("p0\n"), StartsWith("FMT"));
  CHECK_THAT(body("Np-1\n"), StartsWith("FMT") && Contains("the memo key is no number"));
  CHECK_THAT(body("Np99999999999999999999\n"), StartsWith("FMT"));
  CHECK(parsed("\x80\x04K\x01\x94K\x02\x94\x86h\x00h\x01\x86\x86."_s) == "ok");
  const auto backwards = [](std::uint32_t count) {  // keys in falling order, all far away
    std::string out = "N";
    for (std::uint32_t i = 0; i < count; ++i) out += "r" + le(0xFFFFFFFF - i * 97, 4);
    return out;
  };
  CHECK(body(backwards(20000)) == "ok");
  CHECK_THAT(body(backwards(100000)), StartsWith("LIM") && Contains("65536 keys out of order"));
  CHECK(body("h\x05") == "FMT m.ckpt: opcode BINGET (0x68) at byte offset 2: the pickle reads memo 5, which was never set");
}

TEST_CASE("PKL-07: doubling through the memo stays small") {
  std::string list = "]q\x00"_s, dict = "}" + text("w") + value({}) + "sr" + le(0, 4);
  for (std::uint32_t i = 1; i <= 64; ++i) {
    list += "]q" + le(i, 1) + "(h" + le(i - 1, 1) + "h" + le(i - 1, 1) + "e";
    dict += "}r" + le(i, 4) + "(" + text("a") + "j" + le(i - 1, 4) + text("b") + "j" + le(i - 1, 4) + "u";
  }
  const auto doc = parse(program(list + repeated("\x87", 0) + "(" + "t"));
  CHECK_FALSE(doc);  // values are left over: nothing is unfolded to find that out
  std::string nested = "]q\x00"_s;
  for (std::uint32_t i = 1; i <= 64; ++i) nested += "0]q" + le(i, 1) + "(h" + le(i - 1, 1) + "h" + le(i - 1, 1) + "e";
  const auto shared = parse(program(nested));
  REQUIRE(shared);
  CHECK(shared.value().size() < 200);
  CHECK(loaded(program("}" + pair("w", value({})) + pair("x", nested))) == "ok");
  std::string dicts = "}" + text("w") + value({}) + "sr" + le(0, 4);
  for (std::uint32_t i = 1; i <= 64; ++i)
    dicts += "0}r" + le(i, 4) + "(" + text("a") + "j" + le(i - 1, 4) + text("b") + "j" + le(i - 1, 4) + "u";
  ts::limits tight;
  tight.pickle_opcodes = 20000;
  CHECK_THAT(loaded(program(dicts), floats(6), tight), StartsWith("LIM") && Contains("shared so often"));
  CHECK(loaded(program(dicts), floats(6), tight) ==
        "LIM m.ckpt: zip entry 'archive/data.pkl', byte offset 2: the checkpoint's values are shared so often that walking them takes too "
        "long (expected 20000 steps at most, found more); raise it with --max-pickle-opcodes");
}

TEST_CASE("PKL-08: values that contain themselves") {
  CHECK(body("]q\x01h\x01"
             "a") == "ok");
  const std::string cycle = "}q\x01" + text("w") + value({}) + "s" + text("self") + "h\x01s";
  CHECK_THAT(loaded(program(cycle)), StartsWith("FMT") && Contains("the value at 'self' contains itself"));
  CHECK(loaded(program("}" + pair("state_dict", "}" + pair("w", value({}))) +
                       pair("loop",
                            "]q\x01h\x01"
                            "a"))) == "ok");
  CHECK(loaded(program(cycle)) ==
        "FMT m.ckpt: zip entry 'archive/data.pkl', byte offset 2: the value at 'self' contains itself (expected no cycle, found the "
        "top-level value)");
}

TEST_CASE("PKL-09: deep nesting ends early") {
  CHECK_THAT(body("N" + repeated("\x85", 1000000)),
             StartsWith("LIM") && Contains("nests too deep (expected 256 levels at most, found 257)"));
  CHECK_THAT(body(repeated("}K\x01", 1000000)), StartsWith("FMT"));
  CHECK_THAT(body(repeated("}K\x01", 300) + "}" + repeated("s", 300)), StartsWith("LIM") && Contains("--max-pickle-depth"));
  CHECK_THAT(body(repeated("]", 1000000) + repeated("a", 999999)), StartsWith("LIM"));
  CHECK_THAT(body("cmy\nC\n" + repeated(")R", 1000000)), StartsWith("LIM"));
  CHECK(body("N" + repeated("\x85", 1000000)) ==
        "LIM m.ckpt: opcode TUPLE1 (0x85) at byte offset 259: the pickle nests too deep (expected 256 levels at most, found 257); raise "
        "it with --max-pickle-depth");
}

TEST_CASE("PKL-10: lengths beyond the end") {
  CHECK_THAT(body("X\xff\xff\xff\xff"), StartsWith("FMT") && Contains("(expected 4294967295 bytes, found 1 left)"));
  CHECK_THAT(body("\x8d" + le(std::uint64_t{1} << 63, 8)), StartsWith("FMT") && Contains("9223372036854775808"));
  for (const char* op : {"U", "C", "\x8c"}) CHECK_THAT(body(std::string(op) + "\x05"), StartsWith("FMT"));
  CHECK_THAT(body("\x95" + le(std::uint64_t{1} << 63, 8)), StartsWith("FMT"));
  CHECK_THAT(parsed("\x80\x02X\xff"), StartsWith("FMT") && Contains("ends inside an operand"));
  CHECK(body("X\xff\xff\xff\xff") ==
        "FMT m.ckpt: opcode BINUNICODE (0x58) at byte offset 2: the pickle ends inside an operand (expected 4294967295 bytes, found 1 left)");
}

TEST_CASE("PKL-11: large integers") {
  CHECK_THAT(body("\x8a\xff" + std::string(255, '\1')),
             StartsWith("LIM") && Contains("16 bytes at most") && Contains("--max-pickle-integer"));
  CHECK_THAT(body("\x8b" + le(0xFFFFFFFF, 4)), StartsWith("LIM"));
  CHECK_THAT(body("\x8b" + le(0x80000000, 4)), StartsWith("LIM") && Contains("a negative length"));
  CHECK_THAT(body("L" + std::string(1000000, '7') + "L\n"), StartsWith("LIM"));
  CHECK_THAT(body("L" + std::string(41, '7') + "L\n"), StartsWith("LIM") && Contains("40 digits at most"));
  CHECK_THAT(body("L99999999999999999999L\n"), StartsWith("LIM") && Contains("64 bits"));
  const auto check = [](const std::string& opcodes, std::int64_t expected) {
    const auto doc = parse(program(opcodes));
    REQUIRE(doc);
    CHECK(doc.value().integer(doc.value().root()) == expected);
  };
  check("\x8a\x00"_s, 0);
  check("\x8a\x01\xff", -1);
  check("\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\xff", -1);
  check("\x8a\x02\xff\x00"_s, 255);
  check("J\xfe\xff\xff\xff", -2);
  CHECK(parse(program("\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00"_s)).value().kind(4) == ts::pickle_kind::big_integer);
  CHECK(body("\x8a\xff" + std::string(255, '\1')) ==
        "LIM m.ckpt: opcode LONG1 (0x8a) at byte offset 2: the integer is too large (expected 16 bytes at most, found 255); raise it with "
        "--max-pickle-integer");
  CHECK(body("\x8b" + le(0x80000000, 4)) ==
        "LIM m.ckpt: opcode LONG4 (0x8b) at byte offset 2: the integer is too large (expected 16 bytes at most, found a negative length); "
        "raise it with --max-pickle-integer");
}

TEST_CASE("PKL-12: persistent ids") {
  const std::string head = "(" + text("storage") + global("torch", "FloatStorage"),
                    tail = text("0") + text("cpu") + integer(6) + "tQ";
  CHECK(body(head + tail) == "ok");
  CHECK_THAT(body("K\x01Q"), StartsWith("FMT") && Contains("the persistent id is no tuple") && Contains("an integer"));
  CHECK_THAT(body("]Q"), StartsWith("FMT") && Contains("a list"));
  CHECK_THAT(body("Pfoo\n"), StartsWith("FMT") && Contains("a line of text"));
  CHECK_THAT(body(head + text("0") + text("cpu") + "tQ"), StartsWith("FMT") && Contains("(expected 5, found 4)"));
  CHECK_THAT(body(head + text("0") + text("cpu") + integer(6) + "N" + "tQ"),
             StartsWith("FMT") && Contains("(expected 5, found 6)"));
  CHECK_THAT(body("(" + text("st0rage") + global("torch", "FloatStorage") + tail), StartsWith("FMT") && Contains("field 0"));
  CHECK_THAT(body("(" + text("module") + global("torch", "FloatStorage") + tail), StartsWith("UNS"));
  CHECK_THAT(body("(" + text("storage") + global("my", "FloatStorage") + tail), StartsWith("FMT") && Contains("field 1 (class)"));
  CHECK_THAT(body(head + integer(0) + text("cpu") + integer(6) + "tQ"), StartsWith("FMT") && Contains("field 2 (key)"));
  CHECK_THAT(body(head + text("0") + "N" + integer(6) + "tQ"), StartsWith("FMT") && Contains("field 3 (location)"));
  CHECK_THAT(body(head + text("0") + text("cpu") + integer(-1) + "tQ"),
             StartsWith("FMT") && Contains("field 4 (numel)") && Contains("-1"));
  CHECK_THAT(body(head + text("0") + text("cpu") + "\x8a\x09" + std::string(7, '\0') + "\x80\0"_s + "tQ"),
             StartsWith("FMT") && Contains("a large integer"));
  CHECK_THAT(loaded(one({.key = "7"})), StartsWith("FMT") && Contains("'archive/data/7': the storage is missing"));
  CHECK(body("K\x01Q") ==
        "FMT m.ckpt: opcode BINPERSID (0x51) at byte offset 4: the persistent id is no tuple (expected (\"storage\", class, key, "
        "location, numel), found an integer)");
  CHECK(body(head + text("0") + text("cpu") + integer(-1) + "tQ") ==
        "FMT m.ckpt: opcode BINPERSID (0x51) at byte offset 60: field 4 (numel) of the persistent id is wrong (expected a number of "
        "elements from 0 to 2^63 - 1, found -1)");
}

TEST_CASE("PKL-13: sizes that overflow or exceed the storage") {
  CHECK_THAT(loaded(one({.numel = std::int64_t{1} << 62})),
             StartsWith("FMT") && Contains("expected 18446744073709551616 bytes") && Contains("found 24 bytes"));
  CHECK_THAT(loaded(one({.numel = 7})), StartsWith("FMT") && Contains("expected 28 bytes (7 elements of f32), found 24 bytes"));
  CHECK_THAT(loaded(one({.size = {std::int64_t{1} << 40, std::int64_t{1} << 40}, .stride = {0, 0}})),
             StartsWith("LIM") && Contains("too many elements"));
  CHECK_THAT(loaded(one({.size = {std::int64_t{1} << 62}, .stride = {0}})), StartsWith("LIM"));
  CHECK(loaded(one({.numel = 7})) ==
        "FMT m.ckpt: zip entry 'archive/data.pkl', byte offset 188, tensor 'w': storage '0' is shorter than declared (expected 28 bytes "
        "(7 elements of f32), found 24 bytes); is the download incomplete?");
}

TEST_CASE("PKL-14: a storage declared twice") {
  const auto both = [](const tensor& second) {
    return loaded(program("}" + pair("a", value({.size = {2}, .stride = {1}})) + pair("b", value(second))));
  };
  CHECK(both({}) == "ok");
  CHECK_THAT(both({.numel = 5, .size = {2}, .stride = {1}}), StartsWith("FMT") && Contains("storage '0' is declared twice") &&
                                                                 Contains("expected 6 elements of f32, found 5 of f32"));
  CHECK_THAT(both({.storage = "HalfStorage"}), StartsWith("FMT") && Contains("found 6 of f16"));
  CHECK(both({.storage = "HalfStorage"}) ==
        "FMT m.ckpt: zip entry 'archive/data.pkl', byte offset 354, tensor 'b': storage '0' is declared twice in different ways (expected "
        "6 elements of f32, found 6 of f16)");
}

TEST_CASE("PKL-15: views outside their storage") {
  CHECK_THAT(loaded(one({.offset = 1})),
             StartsWith("FMT") && Contains("the tensor reaches past its storage (expected elements below 6, found element 6 "
                                           "(offset 1, size [2, 3], stride [3, 1]))"));
  CHECK_THAT(loaded(one({.stride = {4, 1}})), StartsWith("FMT") && Contains("found element 6"));
  CHECK_THAT(loaded(one({.stride = {-3, 1}})), StartsWith("FMT") && Contains("stride is wrong") && Contains("-3"));
  CHECK_THAT(loaded(one({.offset = -1})), StartsWith("FMT") && Contains("offset is wrong"));
  CHECK_THAT(loaded(one({.size = {2, -3}})), StartsWith("FMT") && Contains("size is wrong"));
  const std::int64_t huge = std::int64_t{1} << 62;
  CHECK_THAT(loaded(one({.size = {3, 5}, .stride = {huge, huge}})),
             StartsWith("FMT") && Contains("found element 27670116110564327424"));
  CHECK_THAT(loaded(one({.offset = 9223372036854775807, .stride = {9223372036854775807, 9223372036854775807}})),
             StartsWith("FMT") && Contains("36893488147419103228"));
  CHECK_THAT(loaded(one({.stride = {1}})), StartsWith("FMT") && Contains("(expected 2, found 1)"));
  CHECK(loaded(one({.offset = 100, .size = {0, 5}, .stride = {1, 1}})) == "ok");
  CHECK_THAT(loaded(one({.size = std::vector<std::int64_t>(65, 1), .stride = std::vector<std::int64_t>(65, 1)})),
             StartsWith("LIM") && Contains("--max-rank"));
  CHECK(loaded(one({.size = {3, 5}, .stride = {huge, huge}})) ==
        "FMT m.ckpt: zip entry 'archive/data.pkl', byte offset 188, tensor 'w': the tensor reaches past its storage (expected elements "
        "below 6, found element 27670116110564327424 (offset 0, size [3, 5], stride [4611686018427387904, 4611686018427387904]))");
  CHECK(loaded(one({.stride = {-3, 1}})) ==
        "FMT m.ckpt: zip entry 'archive/data.pkl', byte offset 188, tensor 'w': the tensor's stride is wrong (expected integers from 0, "
        "found -3)");
  CHECK(loaded(one({.offset = -1})) ==
        "FMT m.ckpt: zip entry 'archive/data.pkl', byte offset 188, tensor 'w': the tensor's offset is wrong (expected an integer from 0, "
        "found -1)");
}

TEST_CASE("PKL-16: a few elements repeated without end") {
  CHECK_THAT(loaded(one({.numel = 1, .size = {1 << 20, 1 << 20}, .stride = {0, 0}})),
             StartsWith("LIM") && Contains("repeats its stored elements too often") &&
                 Contains("4398046511104 bytes from 24 stored") && Contains("--max-expansion"));
  std::string many = "}";  // each of them is small; all of them together are not
  for (int i = 0; i < 40; ++i) many += pair("t" + std::to_string(i), value({.numel = 1, .size = {1 << 20}, .stride = {0}}));
  CHECK_THAT(loaded(program(many)), StartsWith("LIM") && Contains("the tensors together repeat"));
  CHECK(loaded(one({.numel = 1, .size = {1 << 20, 1 << 20}, .stride = {0, 0}})) ==
        "LIM m.ckpt: zip entry 'archive/data.pkl', byte offset 188, tensor 'w': the tensor repeats its stored elements too often "
        "(expected at most 100 times, found 4398046511104 bytes from 24 stored); raise it with --max-expansion");
}

TEST_CASE("PKL-17: overlapping slices of one storage") {
  const auto c = ts::read_torch(source(checkpoint(program("}" + pair("a", value({.size = {4}, .stride = {1}})) +
                                                          pair("b", value({.offset = 2, .size = {4}, .stride = {1}}))))));
  REQUIRE(c);
  const auto bytes = [&](const char* name) {
    const auto b = ts::materialize(c.value().tensors.find(name)->tensor, {}).value();
    return std::string(reinterpret_cast<const char*>(b.data()), b.size());
  };
  CHECK(bytes("a") == floats(6).substr(0, 16));
  CHECK(bytes("b") == floats(6).substr(8, 16));
  REQUIRE(c.value().notes.size() == 1);
  CHECK(c.value().notes[0].text ==
        "1 tensor lies in a range of bytes that another one uses too, first 'b' beside 'a'; each is read as a tensor of its own.");
}

TEST_CASE("PKL-18: items for values that take none") {
  CHECK_THAT(
      body(value({}) + "NNs"),
      StartsWith("FMT") && Contains("the value cannot take items (expected a dict, found torch._utils._rebuild_tensor_v2)"));
  CHECK_THAT(body("]NNs"), StartsWith("FMT") && Contains("expected a dict, found a list"));
  CHECK_THAT(body("N(NNu"), StartsWith("FMT") && Contains("found None"));
  CHECK_THAT(body("}(NNNu"), StartsWith("FMT") && Contains("a key without a value"));
  CHECK_THAT(body("}Na"), StartsWith("FMT") && Contains("expected a list, found a dict"));
  CHECK_THAT(body(text("a") + "(NNe"), StartsWith("FMT") && Contains("found a string"));
  CHECK_THAT(body("(NNNd"), StartsWith("FMT") && Contains("a key without a value"));
  CHECK_THAT(body("(NNu"), StartsWith("FMT"));
  CHECK_THAT(body("]N\x90"), StartsWith("FMT"));
  CHECK(body("]NNs") == "FMT m.ckpt: opcode SETITEM (0x73) at byte offset 5: the value cannot take items (expected a dict, found a list)");
  CHECK(body("}Na") == "FMT m.ckpt: opcode APPEND (0x61) at byte offset 4: the value cannot take items (expected a list, found a dict)");
  CHECK(body("}(NNNu") == "FMT m.ckpt: opcode SETITEMS (0x75) at byte offset 7: a dict gets a key without a value (expected pairs, found 3 values)");
}

TEST_CASE("PKL-19: protocols") {
  for (const int version : {2, 3, 4, 5}) CHECK(parsed("\x80" + std::string(1, static_cast<char>(version)) + "N.") == "ok");
  for (const int version : {0, 1, 6, 255})
    CHECK_THAT(parsed("\x80" + std::string(1, static_cast<char>(version)) + "N."),
               StartsWith("UNS") && Contains(std::to_string(version)));
  CHECK_THAT(parsed("N."), StartsWith("UNS") && Contains("does not name its protocol"));
  CHECK_THAT(body("N\x80\x02"), StartsWith("UNS") && Contains("PROTO stands inside"));
  CHECK(parsed("\x80\x06N.") ==
        "UNS m.ckpt: opcode PROTO (0x80) at byte offset 0: the pickle's protocol is not supported (expected 2 to 5, found 6)");
  CHECK(parsed("N.") ==
        "UNS m.ckpt: opcode NONE (0x4e) at byte offset 0: the pickle does not name its protocol (expected PROTO 2 to 5, found another "
        "opcode: protocol 0 or 1, or no pickle)");
  CHECK(body("N\x80\x02") ==
        "UNS m.ckpt: opcode PROTO (0x80) at byte offset 3: PROTO stands inside the pickle (expected PROTO once, as the first opcode)");
}

TEST_CASE("PKL-20: what follows STOP") {
  CHECK_THAT(parsed("\x80\x02N.more"), StartsWith("FMT") && Contains("4 trailing bytes follow STOP"));
  CHECK_THAT(parsed("\x80\x02N.\x80\x02N."), StartsWith("FMT") && Contains("4 trailing bytes"));
  CHECK_THAT(parsed("\x80\x02N"), StartsWith("FMT") && Contains("the pickle has no STOP"));
  CHECK_THAT(parsed(""), StartsWith("FMT"));
  CHECK_THAT(body("NN"), StartsWith("FMT") && Contains("2 values"));
  CHECK(parsed("\x80\x02N.more") ==
        "FMT m.ckpt: opcode STOP (0x2e) at byte offset 3: 4 trailing bytes follow STOP (expected the end of the data, found 4 bytes)");
  CHECK(parsed("\x80\x02N") == "FMT m.ckpt: byte offset 3: the pickle has no STOP (expected an opcode, found the end of the data)");
}

TEST_CASE("PKL-21: opcodes with text operands") {
  const auto real = [](const std::string& opcodes) {
    const auto doc = parse(program(opcodes));
    REQUIRE(doc);
    REQUIRE(doc.value().kind(doc.value().root()) == ts::pickle_kind::real);
    return doc.value().real(doc.value().root());
  };
  const auto string = [](const std::string& opcodes) {
    const auto doc = parse(program(opcodes));
    REQUIRE(doc);
    return std::string(doc.value().text(doc.value().root()));
  };
  CHECK(real("F1.5\n") == 1.5);
  CHECK(real("F-1e-3\n") == -0.001);
  CHECK(real("Fnan\n") != real("Fnan\n"));
  CHECK(parse(program("I01\n")).value().kind(2) == ts::pickle_kind::boolean);
  CHECK(parse(program("I-12\n")).value().integer(4) == -12);
  CHECK(parse(program("L77L\n")).value().integer(4) == 77);
  CHECK(string("S'a\\x41\\n\\'b'\n") == "aA\n'b");
  CHECK(string("Va\\u00e9\xe9\n") == "a\xc3\xa9\xc3\xa9");
  for (const std::string bad : {"I5\r\n", "F1,5\n", "F\n", "I 5\n", "I0x10\n", "Sabc\n", "S'\n", "S'\\q'\n", "V\\u12\n", "L\n"})
    CHECK_THAT(body(bad), StartsWith("FMT"));
  CHECK_THAT(body("I5\0\n"_s), StartsWith("FMT"));
  CHECK_THAT(body("S'" + std::string(1000000, 'x') + "'\n"),
             StartsWith("LIM") && Contains("a text operand is too long") && Contains("--max-name"));
  CHECK_THAT(body("cmodule"), StartsWith("FMT") && Contains("a line feed"));
  CHECK(body("S'" + std::string(1000000, 'x') + "'\n") ==
        "LIM m.ckpt: opcode STRING (0x53) at byte offset 2: a text operand is too long (expected 65536 bytes at most, found more); raise "
        "it with --max-name");
  CHECK(body("I5\r\n") == "FMT m.ckpt: opcode INT (0x49) at byte offset 2: the text is no number (expected a number in C notation, found '5\\x0d')");
}

TEST_CASE("PKL-22: names that collide, keys that are no names") {
  const std::string twice = "}" + pair("a", "}" + pair("b.c", value({}))) + pair("a.b", "}" + pair("c", value({})));
  CHECK_THAT(loaded(program(twice)),
             StartsWith("MIS") && Contains("'a.b.c'") && Contains("m.ckpt: a.b/c") && Contains("also from m.ckpt: a/b.c"));
  CHECK_THAT(loaded(program("}" + pair("a", value({})) + pair("a", value({})))), StartsWith("MIS"));
  const auto c = ts::read_torch(source(
      checkpoint(program("}" + pair("w", value({})) + integer(7) + value({}) + "sN}s" + "C\x01xNs" + "K\x01K\x02\x86]s"))));
  REQUIRE(c);
  CHECK(c.value().tensors.size() == 1);
  REQUIRE(c.value().ignored.size() == 3);
  CHECK_THAT(c.value().ignored[0].text(), StartsWith("<7>: an object of") && Contains("1 tensor"));
  CHECK(c.value().ignored[1].text() == "<None>: a dict");
  CHECK(c.value().ignored[2].text() == "<a tuple>: a list");
  CHECK(loaded(program(twice)) == "MIS m.ckpt: a.b/c: two tensors get the name 'a.b.c' (expected unique names, found also from m.ckpt: a/b.c)");
}

TEST_CASE("PKL-23: several dicts of weights: the choice is told, nothing is lost") {
  const std::string dict = "}" + pair("w", value({}));
  const auto c = ts::read_torch(source(
      checkpoint(program("}" + pair("ema", dict) + pair("optimizer", dict) + pair("model", dict) + pair("state_dict", dict)))));
  REQUIRE(c);
  CHECK(c.value().selected == "state_dict");
  REQUIRE(c.value().ignored.size() == 3);
  std::size_t tensors = c.value().tensors.size();
  for (const auto& i : c.value().ignored) tensors += i.tensors;
  CHECK(tensors == 4);
}

TEST_CASE("PKL-24: tensors of other kinds are refused by name") {
  for (const std::string name : {"_rebuild_sparse_tensor", "_rebuild_qtensor", "_rebuild_meta_tensor_no_storage",
                                 "_rebuild_wrapper_subclass", "_rebuild_nested_tensor"})
    CHECK_THAT(loaded(program("}" + pair("w", global("torch._utils", name) + ")R"))),
               StartsWith("UNS") && Contains("torch._utils." + name) && Contains("tensor 'w'"));
  CHECK_THAT(loaded(program("}" + pair("w", global("torch._utils", "_rebuild_tensor_v2") + ")R"))),
             StartsWith("FMT") && Contains("6 or 7 arguments, found 0"));
  CHECK_THAT(loaded(one({.metadata = "}" + pair("conj", "\x88")})), StartsWith("UNS") && Contains("'conj'"));
  CHECK(loaded(program("}" + pair("w", global("torch._utils", "_rebuild_qtensor") + ")R"))) ==
        "UNS m.ckpt: zip entry 'archive/data.pkl', byte offset 41, tensor 'w': the tensor is sparse, quantized, nested or without data "
        "(expected a dense tensor, found 'torch._utils._rebuild_qtensor')");
}

TEST_CASE("PKL-25: element types have their size or are refused") {
  const auto typed = [](const std::string& name, std::int64_t numel) {
    return loaded(one({.storage = name, .numel = numel, .size = {numel}, .stride = {1}}));
  };
  for (const auto& [name, numel] : std::vector<std::pair<std::string, std::int64_t>>{{"BoolStorage", 24},
                                                                                     {"ByteStorage", 24},
                                                                                     {"CharStorage", 24},
                                                                                     {"ShortStorage", 12},
                                                                                     {"HalfStorage", 12},
                                                                                     {"BFloat16Storage", 12},
                                                                                     {"IntStorage", 6},
                                                                                     {"LongStorage", 3},
                                                                                     {"DoubleStorage", 3},
                                                                                     {"ComplexFloatStorage", 3},
                                                                                     {"ComplexDoubleStorage", 1}}) {
    CHECK(typed(name, numel) == "ok");
    CHECK_THAT(typed(name, numel + 1), StartsWith("FMT") && Contains("shorter than declared"));
  }
  for (const std::string name : {"QInt8Storage", "QUInt8Storage", "QInt32Storage", "QUInt4x2Storage", "QUInt2x4Storage"})
    CHECK_THAT(typed(name, 1), StartsWith("UNS") && Contains(name));
  CHECK_THAT(loaded(one({.storage = "UntypedStorage", .module = "torch.storage"})), StartsWith("FMT") && Contains("untyped"));
  CHECK_THAT(body("(" + text("storage") + global("torch", "NewStorage") + text("0") + text("cpu") + integer(6) + "tQ"),
             StartsWith("FMT") && Contains("field 1"));
  const auto v3 = [](const std::string& type) {
    return loaded(program("}" + pair("w", global("torch._utils", "_rebuild_tensor_v3") + "(" +
                                              storage({.storage = "UntypedStorage", .module = "torch.storage", .numel = 24}) +
                                              integer(0) + tuple({3}) + tuple({1}) + "\x89N" + type + "tR")));
  };
  CHECK(v3(global("torch", "uint64")) == "ok");
  CHECK_THAT(v3(global("torch", "complex128")), StartsWith("FMT") && Contains("reaches past"));
  CHECK_THAT(v3(global("torch", "bits1x8")), StartsWith("UNS"));
  CHECK_THAT(v3("N"), StartsWith("UNS"));
  CHECK(typed("QInt8Storage", 1) ==
        "UNS m.ckpt: zip entry 'archive/data.pkl', byte offset 168, tensor 'w': the storage's element type is not supported (expected a "
        "floating, integer, boolean or complex type, found 'torch.QInt8Storage')");
}

TEST_CASE("PKL-26: more opcodes and bytes than any checkpoint has") {
  CHECK_THAT(body(repeated("N", 6000000)), StartsWith("LIM") && Contains("5000000 at most") && Contains("--max-pickle-opcodes"));
  ts::limits tight;
  tight.pickle_bytes = 1000;
  CHECK_THAT(body(repeated("N", 1000), tight), StartsWith("LIM") && Contains("--max-pickle"));
  CHECK_THAT(loaded(program(repeated("N", 1000)), floats(6), tight),
             StartsWith("LIM") && Contains("zip entry 'archive/data.pkl'") && Contains("1000 bytes at most, found 1003"));
  CHECK(body(repeated("N", 6000000)) ==
        "LIM m.ckpt: opcode NONE (0x4e) at byte offset 5000001: the pickle has too many opcodes (expected 5000000 at most, found more); "
        "raise it with --max-pickle-opcodes");
}

TEST_CASE("PKL-27: states of values") {
  CHECK(body(global("torch", "FloatTensor") + ")RN\x85"
                                              "b") == "ok");
  CHECK_THAT(body("}}b"), StartsWith("UNS") && Contains("cannot have attributes") && Contains("a dict"));
  CHECK_THAT(body("]}b"), StartsWith("UNS"));
  CHECK_THAT(body(global("collections", "OrderedDict") + ")R}" + pair("other", "N") + "b"),
             StartsWith("UNS") && Contains("'other'"));
  CHECK_THAT(body(global("my", "C") + ")RNbNb"), StartsWith("FMT") && Contains("gets its state twice"));
}

TEST_CASE("PKL-28: buffers outside the pickle") {
  for (const std::string op : {"\x97", "\x98", "\x83", "\x84"})
    CHECK_THAT(body("N" + op), StartsWith("UNS") && Contains("opcode"));
  CHECK(parsed("\x80\x04\x8f(K\x01\x90(K\x02\x91\x86."_s) == "ok");
  CHECK(parsed("\x80\x04" + global("my", "C") + ")}\x92.") == "ok");
}

TEST_CASE("PKL-29: names that are no UTF-8") {
  CHECK_THAT(loaded(program("}" + pair("a\xff", value({})))), StartsWith("FMT") && Contains("'a\\xff', wrong at byte 1"));
  CHECK_THAT(loaded(program("}" + pair("a\xed\xa0\x80", value({})))), StartsWith("FMT"));
  CHECK_THAT(loaded(program("}" + pair(std::string(70000, 'n'), value({})))), StartsWith("LIM") && Contains("--max-name"));
}

TEST_CASE("PKL-30: an OrderedDict of pairs") {
  CHECK(loaded(program(global("collections", "OrderedDict") + "](" + text("w") + value({}) + "\x86" + text("v") + value({}) +
                       "\x86" + "e\x85R")) == "ok");
  CHECK_THAT(body(global("collections", "OrderedDict") + "K\x01\x85R"),
             StartsWith("FMT") && Contains("called with wrong arguments"));
  CHECK_THAT(body(global("collections", "OrderedDict") + "NR"), StartsWith("FMT") && Contains("no tuple"));
  CHECK_THAT(body("NN\x85R"), StartsWith("FMT") && Contains("cannot be called"));
}

// Deviations from the catalogue. PKL-28: NEWOBJ_EX, ADDITEMS and FROZENSET are read, they only build values; EXT* and buffers are
// refused. PKL-21: hexadecimal, blanks and carriage returns in INT, which Python tolerates, are refused.
