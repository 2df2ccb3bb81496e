# SPDX-License-Identifier: MIT
#
# One INTERFACE target a third-party library. Each carries tensorsmith itself, the library, and the definitions its
# headers need; nothing of it ever lands on tensorsmith::tensorsmith.
#
#   tensorsmith::json     nlohmann/json      io/json.hpp and what reads JSON
#   tensorsmith::zlib     zlib               io/zip.hpp and what reads torch files
#   tensorsmith::onnx     onnx + protobuf    format/onnx/
#   tensorsmith::cli11    CLI11              command lines
#   tensorsmith::xtensor  xtensor            the reference evaluator, adaptors
#   tensorsmith::threads  the thread library the executor
#
# A target exists only if its library was found; tensorsmith_require() below says what to install when it was not.
# Used by the source tree and, unchanged, by the installed package.
include_guard(GLOBAL)

function(_tensorsmith_dependency name)
  if(NOT TARGET tensorsmith::${name})
    add_library(tensorsmith::${name} INTERFACE IMPORTED GLOBAL)
    target_link_libraries(tensorsmith::${name} INTERFACE tensorsmith::tensorsmith ${ARGN})
  endif()
endfunction()

find_package(nlohmann_json 3.10 QUIET)
if(TARGET nlohmann_json::nlohmann_json)
  _tensorsmith_dependency(json nlohmann_json::nlohmann_json)
endif()

find_package(ZLIB QUIET)
if(TARGET ZLIB::ZLIB)
  _tensorsmith_dependency(zlib ZLIB::ZLIB)
endif()

find_package(CLI11 QUIET)
if(TARGET CLI11::CLI11)
  _tensorsmith_dependency(cli11 CLI11::CLI11)
endif()

find_package(xtensor QUIET)
if(TARGET xtensor)
  _tensorsmith_dependency(xtensor xtensor)
endif()

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads QUIET)
if(TARGET Threads::Threads)
  _tensorsmith_dependency(threads Threads::Threads)
endif()

# The onnx package has a CMake configuration in some distributions only, and where it has one its targets carry neither
# protobuf nor the definitions that its headers refuse to do without. So the files are looked for by name.
find_path(TENSORSMITH_ONNX_INCLUDE_DIR onnx/onnx_pb.h)
find_library(TENSORSMITH_ONNX_LIBRARY onnx)
find_library(TENSORSMITH_ONNX_PROTO_LIBRARY onnx_proto)
mark_as_advanced(TENSORSMITH_ONNX_INCLUDE_DIR TENSORSMITH_ONNX_LIBRARY TENSORSMITH_ONNX_PROTO_LIBRARY)
find_package(Protobuf QUIET)
if(TARGET protobuf::libprotobuf AND TENSORSMITH_ONNX_INCLUDE_DIR AND TENSORSMITH_ONNX_LIBRARY
   AND TENSORSMITH_ONNX_PROTO_LIBRARY)
  _tensorsmith_dependency(onnx
    ${TENSORSMITH_ONNX_LIBRARY} ${TENSORSMITH_ONNX_PROTO_LIBRARY} protobuf::libprotobuf)
  target_include_directories(tensorsmith::onnx SYSTEM INTERFACE ${TENSORSMITH_ONNX_INCLUDE_DIR})
  target_compile_definitions(tensorsmith::onnx INTERFACE ONNX_NAMESPACE=onnx ONNX_ML=1)
endif()

# tensorsmith_require(json zlib …): stops with what to install where one is missing.
function(tensorsmith_require)
  set(package_json nlohmann-json3-dev)
  set(package_zlib zlib1g-dev)
  set(package_onnx "libonnx-dev libprotobuf-dev")
  set(package_cli11 libcli11-dev)
  set(package_xtensor libxtensor-dev)
  set(package_threads libc6-dev)
  foreach(name IN LISTS ARGN)
    if(NOT TARGET tensorsmith::${name})
      message(FATAL_ERROR "tensorsmith::${name} needs a library that was not found: "
        "run scripts/setup, or install ${package_${name}} (Debian's name).")
    endif()
  endforeach()
endfunction()
