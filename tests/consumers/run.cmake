# SPDX-License-Identifier: MIT
#
# Configures, builds and runs one consumer from nothing. The flags are a consumer's own, not ours.
function(must what)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE code)
  if(NOT code EQUAL 0)
    message(FATAL_ERROR "${what} failed: ${code}")
  endif()
endfunction()

file(REMOVE_RECURSE ${BUILD})
must("configuring" ${CMAKE_COMMAND} -G ${GENERATOR} -S ${SOURCE} -B ${BUILD}
  -D CMAKE_CXX_COMPILER=${COMPILER} "-DCMAKE_CXX_COMPILER_LAUNCHER=${LAUNCHER}" "-DCMAKE_CXX_FLAGS=-O0 -g0"
  -D CMAKE_PREFIX_PATH=${PREFIX} -D TENSORSMITH_SOURCE=${TENSORSMITH_SOURCE})
must("building" ${CMAKE_COMMAND} --build ${BUILD})
must("running" ${BUILD}/consumer ${TENSORSMITH_SOURCE}/tests/data)
