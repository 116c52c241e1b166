// SPDX-License-Identifier: GPL-2.0-only
/*
 * Rebinding of the main program's imported functions (ELF gABI; the relocation
 * types are those of the processor supplements).
 */
#define _GNU_SOURCE
#include "steer.h"

#include <elf.h>
#include <errno.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Where a slot is filled from a symbol: of the PLT, and of the GOT. */
#if defined(__x86_64__)
#define R_JUMP_SLOT R_X86_64_JUMP_SLOT
#define R_GLOB_DAT R_X86_64_GLOB_DAT
#elif defined(__aarch64__)
#define R_JUMP_SLOT R_AARCH64_JUMP_SLOT
#define R_GLOB_DAT R_AARCH64_GLOB_DAT
#elif defined(__arm__)
#define R_JUMP_SLOT R_ARM_JUMP_SLOT
#define R_GLOB_DAT R_ARM_GLOB_DAT
#elif defined(__powerpc64__) && _CALL_ELF == 2 /* in ELFv1 a slot is a whole descriptor */
#define R_JUMP_SLOT R_PPC64_JMP_SLOT
#define R_GLOB_DAT R_PPC64_GLOB_DAT
#elif defined(__s390x__)
#define R_JUMP_SLOT R_390_JMP_SLOT
#define R_GLOB_DAT R_390_GLOB_DAT
#elif defined(__riscv) && __riscv_xlen == 64
#define R_JUMP_SLOT R_RISCV_JUMP_SLOT
#define R_GLOB_DAT R_RISCV_64
#elif defined(__loongarch__) && __loongarch_grlen == 64
#define R_JUMP_SLOT R_LARCH_JUMP_SLOT
#define R_GLOB_DAT R_LARCH_64
#else
#error "no relocation types are known for this processor"
#endif

#if UINTPTR_MAX > UINT32_MAX
#define R_TYPE ELF64_R_TYPE
#define R_SYM ELF64_R_SYM
#else
#define R_TYPE ELF32_R_TYPE
#define R_SYM ELF32_R_SYM
#endif

/* A name has at most a JUMP_SLOT and a GLOB_DAT slot; a handful of names is steered. */
#define MAX_SLOTS 32

struct slot {
	void **where;
	void *original;
	bool read_only; /* full RELRO: the page must be made read-only again */
};

static struct slot slots[MAX_SLOTS];
static size_t nr_slots;

/* --- the main program --- */

/* Relocations with an addend (DT_RELA) or without (DT_REL): they begin alike. */
struct table {
	const char *start;
	size_t size, entry_size;
};

enum { PLT_TABLE, REL_TABLE, RELA_TABLE, NR_TABLES };

struct main_program {
	ElfW(Addr) base;
	const ElfW(Sym) * symtab;
	const char *strtab;
	struct table tables[NR_TABLES];
	ElfW(Addr) relro_start, relro_end;
};

static void read_dynamic(struct main_program *prog, const ElfW(Dyn) * dyn)
{
	struct table *tables = prog->tables;

	tables[PLT_TABLE].entry_size = sizeof(ElfW(Rela));
	tables[REL_TABLE].entry_size = sizeof(ElfW(Rel));
	tables[RELA_TABLE].entry_size = sizeof(ElfW(Rela));
	for (; dyn && dyn->d_tag != DT_NULL; dyn++) {
		ElfW(Addr) value = dyn->d_un.d_ptr;
		/* glibc relocates addresses on all but a few processors, musl on none. */
		const void *at = (const void *)(value < prog->base ? prog->base + value : value);

		switch (dyn->d_tag) {
		case DT_SYMTAB:
			prog->symtab = at;
			break;
		case DT_STRTAB:
			prog->strtab = at;
			break;
		case DT_JMPREL:
			tables[PLT_TABLE].start = at;
			break;
		case DT_PLTRELSZ:
			tables[PLT_TABLE].size = value;
			break;
		case DT_PLTREL:
			if (value == DT_REL)
				tables[PLT_TABLE].entry_size = sizeof(ElfW(Rel));
			break;
		case DT_REL:
			tables[REL_TABLE].start = at;
			break;
		case DT_RELSZ:
			tables[REL_TABLE].size = value;
			break;
		case DT_RELA:
			tables[RELA_TABLE].start = at;
			break;
		case DT_RELASZ:
			tables[RELA_TABLE].size = value;
			break;
		}
	}
}

/* The first object that dl_iterate_phdr(3) shows is the main program. */
static int note_main_program(struct dl_phdr_info *info, size_t size, void *data)
{
	/* Whole pages only are protected (_dl_protect_relro of glibc). */
	ElfW(Addr) page = ~((ElfW(Addr))sysconf(_SC_PAGESIZE) - 1);
	struct main_program *prog = data;
	const ElfW(Dyn) *dyn = NULL;

	(void)size;
	prog->base = info->dlpi_addr;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *ph = &info->dlpi_phdr[i];

		if (ph->p_type == PT_DYNAMIC) {
			dyn = (const void *)(prog->base + ph->p_vaddr);
		} else if (ph->p_type == PT_GNU_RELRO) {
			prog->relro_start = (prog->base + ph->p_vaddr) & page;
			prog->relro_end = (prog->base + ph->p_vaddr + ph->p_memsz) & page;
		}
	}
	read_dynamic(prog, dyn);
	return 1; /* stop at the first */
}

/* --- slots --- */

/* All or nothing: with -1 the slot has its old value. */
static int write_slot(const struct slot *slot, void *value)
{
	long page = sysconf(_SC_PAGESIZE);
	void *start = (void *)((uintptr_t)slot->where & ~((uintptr_t)page - 1));
	void *old = *slot->where;

	if (slot->read_only && mprotect(start, page, PROT_READ | PROT_WRITE))
		return -1;
	*slot->where = value;
	if (slot->read_only && mprotect(start, page, PROT_READ)) {
		*slot->where = old;
		return -1;
	}
	return 0;
}

static void unsteer_down_to(size_t count)
{
	while (nr_slots > count) {
		nr_slots--;
		write_slot(&slots[nr_slots], slots[nr_slots].original);
	}
}

static void *replacement_for(const char *name, const struct steering *wanted, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (!strcmp(name, wanted[i].name))
			return wanted[i].replacement;
	return NULL;
}

static int rebind(const struct main_program *prog, const ElfW(Rel) * rel,
		  const struct steering *wanted, size_t count)
{
	unsigned long type = R_TYPE(rel->r_info);
	const ElfW(Sym) *sym = &prog->symtab[R_SYM(rel->r_info)];
	uintptr_t where = prog->base + rel->r_offset;
	struct slot slot;
	void *replacement;

	if (type != R_JUMP_SLOT && type != R_GLOB_DAT)
		return 0;
	/* A name that the program defines itself is not an import. */
	if (sym->st_shndx != SHN_UNDEF)
		return 0;
	replacement = replacement_for(prog->strtab + sym->st_name, wanted, count);
	if (!replacement)
		return 0;
	if (nr_slots == MAX_SLOTS) {
		errno = E2BIG;
		return -1;
	}
	slot.where = (void **)where;
	slot.original = *slot.where;
	slot.read_only = where >= prog->relro_start && where < prog->relro_end;
	if (write_slot(&slot, replacement))
		return -1;
	slots[nr_slots++] = slot;
	return 0;
}

static int rebind_table(const struct main_program *prog, const struct table *table,
			const struct steering *wanted, size_t count)
{
	size_t end = table->start ? table->size : 0;

	for (size_t at = 0; at + table->entry_size <= end; at += table->entry_size)
		if (rebind(prog, (const void *)(table->start + at), wanted, count))
			return -1;
	return 0;
}

int steer_main_program(const struct steering *wanted, size_t count)
{
	struct main_program prog = { 0 };
	size_t before = nr_slots;

	dl_iterate_phdr(note_main_program, &prog);
	for (int i = 0; prog.symtab && prog.strtab && i < NR_TABLES; i++) {
		if (rebind_table(&prog, &prog.tables[i], wanted, count)) {
			int saved = errno;

			unsteer_down_to(before);
			errno = saved;
			return -1;
		}
	}
	if (nr_slots > before)
		return 0;
	errno = ENOENT; /* so it is in a static program, which has no slots */
	return -1;
}

const char *why_not_steered(const char *name)
{
	static char text[128];

	if (errno == ENOENT)
		snprintf(text, sizeof(text), "this CRIU does not import %s", name);
	else
		snprintf(text, sizeof(text), "%s of this CRIU can't be rebound (%s)", name,
			 strerror(errno));
	return text;
}

void unsteer_main_program(void)
{
	unsteer_down_to(0);
}
