/*
 * QEMU TCG plugin: how often was each basic block executed between two marks that the guest sets?
 *
 * The guest marks the start of region k with the system call getsid(MARK + 2k) and its end with
 * getsid(MARK + 2k + 1). No process has such an id, so the calls only fail, and cost next to nothing.
 * At the end of region k the file "<out>.<k>" is written, one line for each block that was executed:
 *
 *     <executions> <instruction word in hex> <instruction word in hex> ...
 *
 * Usage: qemu-aarch64 -plugin plugin.so,out=/some/path ...
 *
 * QEMU 7.2 to 8.2 (plugin interface 1). Debian does not package qemu-plugin.h, so the few functions that are
 * needed are declared here.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The part of qemu-plugin.h that is used. */
typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { INLINE_ADD_U64 = 0 };
typedef void (*translation_callback)(plugin_id, struct qemu_plugin_tb *);
typedef void (*syscall_callback)(plugin_id, unsigned vcpu, int64_t number, uint64_t, uint64_t, uint64_t, uint64_t,
                                 uint64_t, uint64_t, uint64_t, uint64_t);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t index);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, translation_callback);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int operation, void *counter, uint64_t value);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id, syscall_callback);

#define EXPORTED __attribute__((visibility("default")))
EXPORTED int qemu_plugin_version = 1;

#define SYSCALL_GETSID 156 /* arm64 */
#define MARK 0x5A0000u
#define MARK_MASK 0xFFFFu

/* A translated block. Two blocks are the same if address and instructions are: QEMU may translate one again. */
struct block {
    uint64_t address;
    size_t length;
    uint32_t *words;
    uint64_t executions;
    struct block *next;
};

#define BUCKETS 65536
static struct block *buckets[BUCKETS];
static const char *out_path = "blocks";

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (!memory) {
        fprintf(stderr, "block-counting plugin: out of memory\n");
        abort();
    }
    return memory;
}

/* The block with this address and these instructions; takes over or frees `words`. */
static struct block *find_or_add(uint64_t address, size_t length, uint32_t *words)
{
    struct block **bucket = &buckets[(address >> 2) % BUCKETS];
    for (struct block *block = *bucket; block; block = block->next) {
        if (block->address == address && block->length == length &&
            !memcmp(block->words, words, length * sizeof *words)) {
            free(words);
            return block;
        }
    }
    struct block *block = allocate(1, sizeof *block);
    *block = (struct block){.address = address, .length = length, .words = words, .next = *bucket};
    *bucket = block;
    return block;
}

/* Called for each block that QEMU translates: have it count its own executions, without a call out. */
static void on_translation(plugin_id id, struct qemu_plugin_tb *tb)
{
    (void)id;
    size_t length = qemu_plugin_tb_n_insns(tb);
    uint32_t *words = allocate(length, sizeof *words);
    for (size_t i = 0; i < length; i++)
        memcpy(&words[i], qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), sizeof *words);
    struct block *block = find_or_add(qemu_plugin_tb_vaddr(tb), length, words);
    qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD_U64, &block->executions, 1);
}

static void forget_executions(void)
{
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct block *block = buckets[i]; block; block = block->next)
            block->executions = 0;
}

static void write_executions(unsigned region)
{
    char path[4096];
    snprintf(path, sizeof path, "%s.%u", out_path, region);
    FILE *file = fopen(path, "w");
    if (!file) {
        perror(path);
        abort();
    }
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct block *block = buckets[i]; block; block = block->next) {
            if (!block->executions)
                continue;
            fprintf(file, "%llu", (unsigned long long)block->executions);
            for (size_t k = 0; k < block->length; k++)
                fprintf(file, " %08x", block->words[k]);
            fputc('\n', file);
        }
    fclose(file);
}

static void on_syscall(plugin_id id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                       uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)vcpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != SYSCALL_GETSID || (a1 & ~(uint64_t)MARK_MASK) != MARK)
        return;
    unsigned mark = a1 & MARK_MASK;
    if (mark % 2 == 0)
        forget_executions();
    else
        write_executions(mark / 2);
}

EXPORTED int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4))
            out_path = strdup(argv[i] + 4);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    return 0;
}
