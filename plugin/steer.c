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
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__x86_64__)
#define R_JUMP_SLOT R_X86_64_JUMP_SLOT
#define R_GLOB_DAT R_X86_64_GLOB_DAT
#elif defined(__aarch64__)
#define R_JUMP_SLOT R_AARCH64_JUMP_SLOT
#define R_GLOB_DAT R_AARCH64_GLOB_DAT
#elif defined(__powerpc64__)
#define R_JUMP_SLOT R_PPC64_JMP_SLOT
#define R_GLOB_DAT R_PPC64_GLOB_DAT
#elif defined(__s390x__)
#define R_JUMP_SLOT R_390_JMP_SLOT
#define R_GLOB_DAT R_390_GLOB_DAT
#elif defined(__riscv) && __riscv_xlen == 64
#define R_JUMP_SLOT R_RISCV_JUMP_SLOT
#define R_GLOB_DAT R_RISCV_64
#else
#error "no relocation types are known for this processor"
#endif

/* A name has at most a JUMP_SLOT and a GLOB_DAT slot; a handful of names is steered. */
#define MAX_SLOTS 32

struct slot {
	void **where;
	void *original;
	int read_only; /* full RELRO: the page must be made read-only again */
};

static struct slot slots[MAX_SLOTS];
static size_t nr_slots;

struct main_program {
	ElfW(Addr) base;
	const ElfW(Sym) * symtab;
	const char *strtab;
	const ElfW(Rela) * tables[2];
	size_t lengths[2];
	ElfW(Addr) relro_start, relro_end;
};

/* The first object that dl_iterate_phdr(3) shows is the main program. */
static int note_main_program(struct dl_phdr_info *info, size_t size, void *data)
{
	struct main_program *prog = data;
	const ElfW(Dyn) *dyn = NULL;

	(void)size;
	prog->base = info->dlpi_addr;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *ph = &info->dlpi_phdr[i];

		if (ph->p_type == PT_DYNAMIC) {
			dyn = (const void *)(prog->base + ph->p_vaddr);
		} else if (ph->p_type == PT_GNU_RELRO) {
			/* glibc protects whole pages only (_dl_protect_relro) */
			ElfW(Addr) page = ~((ElfW(Addr))sysconf(_SC_PAGESIZE) - 1);

			prog->relro_start = (prog->base + ph->p_vaddr) & page;
			prog->relro_end = (prog->base + ph->p_vaddr + ph->p_memsz) & page;
		}
	}
	/* d_ptr is relocated by glibc on all but a few processors: accept both. */
#define AT(ptr) ((ptr) < prog->base ? prog->base + (ptr) : (ptr))
	for (; dyn && dyn->d_tag != DT_NULL; dyn++) {
		switch (dyn->d_tag) {
		case DT_SYMTAB:
			prog->symtab = (const void *)AT(dyn->d_un.d_ptr);
			break;
		case DT_STRTAB:
			prog->strtab = (const void *)AT(dyn->d_un.d_ptr);
			break;
		case DT_JMPREL:
			prog->tables[0] = (const void *)AT(dyn->d_un.d_ptr);
			break;
		case DT_PLTRELSZ:
			prog->lengths[0] = dyn->d_un.d_val / sizeof(ElfW(Rela));
			break;
		case DT_RELA:
			prog->tables[1] = (const void *)AT(dyn->d_un.d_ptr);
			break;
		case DT_RELASZ:
			prog->lengths[1] = dyn->d_un.d_val / sizeof(ElfW(Rela));
			break;
		}
	}
#undef AT
	return 1; /* stop at the first */
}

static int write_slot(const struct slot *slot, void *value)
{
	long page = sysconf(_SC_PAGESIZE);
	void *start = (void *)((uintptr_t)slot->where & ~((uintptr_t)page - 1));

	if (slot->read_only && mprotect(start, page, PROT_READ | PROT_WRITE))
		return -1;
	*slot->where = value;
	if (slot->read_only && mprotect(start, page, PROT_READ))
		return -1;
	return 0;
}

static void *replacement_for(const char *name, const struct steering *wanted, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (!strcmp(name, wanted[i].name))
			return wanted[i].replacement;
	return NULL;
}

static int rebind(const struct main_program *prog, const ElfW(Rela) * rela,
		  const struct steering *wanted, size_t count)
{
	unsigned long type = ELF64_R_TYPE(rela->r_info);
	const ElfW(Sym) *sym = &prog->symtab[ELF64_R_SYM(rela->r_info)];
	uintptr_t where = prog->base + rela->r_offset;
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

int steer_main_program(const struct steering *wanted, size_t count)
{
	struct main_program prog = { 0 };
	size_t before = nr_slots;

	dl_iterate_phdr(note_main_program, &prog);
	if (!prog.symtab || !prog.strtab) {
		errno = ENOEXEC; /* a static criu has no slots to rebind */
		return -1;
	}
	for (int t = 0; t < 2; t++) {
		for (size_t i = 0; prog.tables[t] && i < prog.lengths[t]; i++) {
			if (rebind(&prog, &prog.tables[t][i], wanted, count)) {
				int saved = errno;

				unsteer_main_program();
				errno = saved;
				return -1;
			}
		}
	}
	return (int)(nr_slots - before);
}

void unsteer_main_program(void)
{
	while (nr_slots > 0) {
		nr_slots--;
		write_slot(&slots[nr_slots], slots[nr_slots].original);
	}
}
