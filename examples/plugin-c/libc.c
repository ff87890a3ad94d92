// The part of a C library that the bindings need. Each batch runs in a fresh instance, which is discarded after it:
// memory is allocated at the end, and only the last block is ever freed.

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

extern unsigned char __heap_base;
static uintptr_t top = 0, last = 0;

static void *take(size_t size, size_t align) {
    if (top == 0) top = (uintptr_t)&__heap_base;
    uintptr_t start = (top + align - 1) & ~(uintptr_t)(align - 1);
    size_t have = __builtin_wasm_memory_size(0) * 65536;
    if (size > UINTPTR_MAX - start) abort();
    if (start + size > have) {
        size_t pages = (start + size - have + 65535) / 65536;
        if (__builtin_wasm_memory_grow(0, pages) == (size_t)-1) abort();
    }
    last = start;
    top = start + size;
    return (void *)start;
}

void *malloc(size_t size) { return take(size, 16); }

void *realloc(void *old, size_t size) {
    if (old != NULL && (uintptr_t)old == last) {
        top = last;
        return take(size, 1);
    }
    // The length of the old block is unknown; memory after its start is readable at least up to the top.
    uintptr_t readable = old == NULL ? 0 : top - (uintptr_t)old;
    void *new = take(size, 16);
    return old == NULL ? new : memcpy(new, old, size < readable ? size : readable);
}

void free(void *block) {
    if (block != NULL && (uintptr_t)block == last) top = last;
}

_Noreturn void abort(void) { __builtin_trap(); }

size_t strlen(const char *text) {
    size_t n = 0;
    while (text[n] != '\0') n++;
    return n;
}

void *memcpy(void *restrict to, const void *restrict from, size_t n) {
    for (size_t i = 0; i < n; i++) ((unsigned char *)to)[i] = ((const unsigned char *)from)[i];
    return to;
}
