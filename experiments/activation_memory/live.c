/* Counts the bytes that are allocated at once: preloaded ahead of libc, asked through ctypes.
   gcc -O2 -shared -fPIC -o live.so live.c -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <stdlib.h>

static int counting;
static long live, peak;

static void *grown(void *block) {
    if (counting && block) {
        long now = __atomic_add_fetch(&live, (long)malloc_usable_size(block), __ATOMIC_RELAXED);
        if (now > peak) peak = now;
    }
    return block;
}

static void shrunk(void *block) {
    if (counting && block) __atomic_sub_fetch(&live, (long)malloc_usable_size(block), __ATOMIC_RELAXED);
}

void live_begin(void) { live = peak = 0; counting = 1; }
long live_end(void) { counting = 0; return peak; }

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

void *malloc(size_t size) { return grown(__libc_malloc(size)); }
void *calloc(size_t count, size_t size) { return grown(__libc_calloc(count, size)); }
void *realloc(void *block, size_t size) { shrunk(block); return grown(__libc_realloc(block, size)); }
void *memalign(size_t alignment, size_t size) { return grown(__libc_memalign(alignment, size)); }
void *aligned_alloc(size_t alignment, size_t size) { return grown(__libc_memalign(alignment, size)); }
int posix_memalign(void **block, size_t alignment, size_t size) {
    *block = grown(__libc_memalign(alignment, size));
    return *block ? 0 : ENOMEM;
}
void free(void *block) { shrunk(block); __libc_free(block); }
