/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Structures of the kernel's uapi headers, under names of our own: the headers of a build machine
 * may be older than the kernel that runs, and lack a structure or its last fields. What Python
 * reads of them it reads through cffi (kernel_build.py), by these names.
 */
#ifndef CRIU_DETACHED_UAPI_H
#define CRIU_DETACHED_UAPI_H

#include <stdint.h>

/* linux/openat2.h: struct open_how, OPEN_HOW_SIZE_VER0 */
struct uapi_open_how {
	uint64_t flags;
	uint64_t mode;
	uint64_t resolve;
};

/* fcntl.h: struct file_handle, with MAX_HANDLE_SZ bytes */
struct uapi_file_handle {
	unsigned int handle_bytes;
	int handle_type;
	unsigned char f_handle[128];
};

/* linux/fs.h: struct fsuuid2, Linux 6.9 */
struct uapi_fsuuid2 {
	uint8_t len;
	uint8_t uuid[16];
};

/* linux/mount.h: struct mount_attr, MOUNT_ATTR_SIZE_VER0 */
struct uapi_mount_attr {
	uint64_t attr_set;
	uint64_t attr_clr;
	uint64_t propagation;
	uint64_t userns_fd;
};

/* linux/mount.h: struct mnt_id_req, MNT_ID_REQ_SIZE_VER1 */
struct uapi_mnt_id_req {
	uint32_t size;
	uint32_t mnt_fd; /* Linux 7.0, with STATMOUNT_BY_FD; "spare" before */
	uint64_t mnt_id;
	uint64_t param;
	uint64_t mnt_ns_id;
};

/* linux/mount.h: struct statmount as of Linux 7.0. Strings are offsets in str. */
struct uapi_statmount {
	uint32_t size; /* with the strings */
	uint32_t mnt_opts;
	uint64_t mask;
	uint32_t sb_dev_major;
	uint32_t sb_dev_minor;
	uint64_t sb_magic;
	uint32_t sb_flags;
	uint32_t fs_type;
	uint64_t mnt_id;
	uint64_t mnt_parent_id;
	uint32_t mnt_id_old;
	uint32_t mnt_parent_id_old;
	uint64_t mnt_attr;
	uint64_t mnt_propagation;
	uint64_t mnt_peer_group;
	uint64_t mnt_master;
	uint64_t propagate_from;
	uint32_t mnt_root;
	uint32_t mnt_point;
	uint64_t mnt_ns_id;
	uint32_t fs_subtype;
	uint32_t sb_source;
	uint32_t opt_num;
	uint32_t opt_array;
	uint32_t opt_sec_num;
	uint32_t opt_sec_array;
	uint64_t supported_mask;
	uint32_t mnt_uidmap_num;
	uint32_t mnt_uidmap;
	uint32_t mnt_gidmap_num;
	uint32_t mnt_gidmap;
	uint64_t spare[43];
	char str[];
};

/* linux/nsfs.h: struct mnt_ns_info, Linux 6.12 */
struct uapi_mnt_ns_info {
	uint32_t size;
	uint32_t nr_mounts;
	uint64_t mnt_ns_id;
};

/* linux/loop.h: struct loop_info64 */
struct uapi_loop_info64 {
	uint64_t lo_device; /* of the backing file, as huge_encode_dev() has it */
	uint64_t lo_inode;  /* likewise */
	uint64_t lo_rdevice;
	uint64_t lo_offset;
	uint64_t lo_sizelimit;
	uint32_t lo_number;
	uint32_t lo_encrypt_type;
	uint32_t lo_encrypt_key_size;
	uint32_t lo_flags;
	uint8_t lo_file_name[64];
	uint8_t lo_crypt_name[64];
	uint8_t lo_encrypt_key[32];
	uint64_t lo_init[2];
};

/* linux/loop.h: struct loop_config, Linux 5.8 */
struct uapi_loop_config {
	uint32_t fd;
	uint32_t block_size;
	struct uapi_loop_info64 info;
	uint64_t reserved[8];
};

/* linux/fs.h: struct procmap_query, Linux 6.11 */
struct uapi_procmap_query {
	uint64_t size;
	uint64_t query_flags;
	uint64_t query_addr;
	uint64_t vma_start;
	uint64_t vma_end;
	uint64_t vma_flags;
	uint64_t vma_page_size;
	uint64_t vma_offset;
	uint64_t inode;
	uint32_t dev_major;
	uint32_t dev_minor;
	uint32_t vma_name_size;
	uint32_t build_id_size;
	uint64_t vma_name_addr;
	uint64_t build_id_addr;
};

#endif
