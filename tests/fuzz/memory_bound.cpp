// SPDX-License-Identifier: MIT
//
// tests/fuzz/memory_bound.cpp: operator new and delete that count.
#include "fuzz/memory_bound.hpp"

#include <malloc.h>

#include <cstdio>
#include <cstdlib>
#include <new>

namespace {

// The targets run on one thread, and no reader starts another one.
bool armed = false;
std::size_t bound = 0;
std::ptrdiff_t living = 0;  // may fall below zero: memory from before may be freed meanwhile

void* counted(std::size_t size, std::size_t alignment) {
  if (armed && (size > bound || living + static_cast<std::ptrdiff_t>(size) > static_cast<std::ptrdiff_t>(bound))) {
    armed = false;
    std::fprintf(stderr, "MEMORY: an allocation of %zu bytes beside %td living ones; this input may take %zu\n", size, living, bound);
    std::abort();
  }
  void* const p = alignment > alignof(std::max_align_t) ? std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment)
                                                        : std::malloc(size ? size : 1);
  if (p == nullptr) std::abort();
  if (armed) living += static_cast<std::ptrdiff_t>(::malloc_usable_size(p));
  return p;
}

void uncounted(void* p) noexcept {
  if (armed && p != nullptr) living -= static_cast<std::ptrdiff_t>(::malloc_usable_size(p));
  std::free(p);
}

}  // namespace

namespace fuzz {

memory_bound::memory_bound(std::size_t input_bytes) noexcept {
  bound = (std::size_t{64} << 20) + 8 * input_bytes;
  living = 0;
  armed = true;
}
memory_bound::~memory_bound() { armed = false; }

}  // namespace fuzz

void* operator new(std::size_t size) { return counted(size, 0); }
void* operator new[](std::size_t size) { return counted(size, 0); }
void* operator new(std::size_t size, std::align_val_t alignment) { return counted(size, static_cast<std::size_t>(alignment)); }
void* operator new[](std::size_t size, std::align_val_t alignment) { return counted(size, static_cast<std::size_t>(alignment)); }
void operator delete(void* p) noexcept { uncounted(p); }
void operator delete[](void* p) noexcept { uncounted(p); }
void operator delete(void* p, std::size_t) noexcept { uncounted(p); }
void operator delete[](void* p, std::size_t) noexcept { uncounted(p); }
void operator delete(void* p, std::align_val_t) noexcept { uncounted(p); }
void operator delete[](void* p, std::align_val_t) noexcept { uncounted(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { uncounted(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { uncounted(p); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return counted(size, 0); }
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept { return counted(size, 0); }
void operator delete(void* p, const std::nothrow_t&) noexcept { uncounted(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { uncounted(p); }
