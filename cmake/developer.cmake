# SPDX-License-Identifier: MIT
#
# What programs, tests and benchmarks of this repository are compiled with. Nothing here reaches a consumer.
include_guard(GLOBAL)

set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES AND NOT CMAKE_CXX_FLAGS)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

if(TENSORSMITH_CCACHE)
  find_program(TENSORSMITH_CCACHE_PROGRAM ccache)
  if(TENSORSMITH_CCACHE_PROGRAM AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
    set(CMAKE_CXX_COMPILER_LAUNCHER ${TENSORSMITH_CCACHE_PROGRAM})
  endif()
endif()

add_library(tensorsmith_developer INTERFACE)
target_link_libraries(tensorsmith_developer INTERFACE tensorsmith::tensorsmith)
target_compile_options(tensorsmith_developer INTERFACE -Wall -Wextra -Wpedantic -Wconversion -Wshadow)
# GCC 13 and newer take a reference found by name for one to the name.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 13)
  target_compile_options(tensorsmith_developer INTERFACE -Wno-dangling-reference)
endif()
# Every target gets every library, so that one list serves all; those that a program does not use are not linked.
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  target_link_options(tensorsmith_developer INTERFACE -Wl,--as-needed)
endif()
if(TENSORSMITH_WERROR)
  target_compile_options(tensorsmith_developer INTERFACE -Werror)
endif()
if(TENSORSMITH_SANITIZE)
  target_compile_options(tensorsmith_developer INTERFACE
    -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(tensorsmith_developer INTERFACE -fsanitize=address,undefined)
endif()
