/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT */
/*
 * svmx for C: what docs/spec.md calls the driver's interface (9), rings (4) and commands (5).
 *
 * abi/tests/header.rs compares every line of it with the Rust definitions, which have the comments in full.
 * guest/c/fetch_add.c is an example to begin with.
 */
#ifndef _UAPI_SVMX_H
#define _UAPI_SVMX_H

#include <linux/ioctl.h>
#include <linux/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * ioctls on /dev/svmxN (spec 9.2). Each structure begins with its own size; flags and reserved fields are zero.
 */

#define SVMX_HIST_BUCKETS	136

struct svmx_info {
	__u32 size;
	__u32 flags;
	__u32 version;			/* out, as all below */
	__u32 num_engines;
	__u64 opcodes;			/* a bit for each opcode */
	__u64 bulk_opcodes;
	__u32 max_ring_log2;
	__u32 state;			/* SVMX_INFO_* */
};

#define SVMX_INFO_PROTECTION_OFF	(1 << 0)

struct svmx_queue_create {
	__u32 size;
	__u32 flags;
	__u8 sq_log2;			/* binary logarithms of the rings' entries */
	__u8 cq_log2;
	__u16 reserved;
	__u32 queue;			/* out, as all below */
	__u64 sq_offset;		/* to mmap() the file at, MAP_SHARED: read and write */
	__u64 cq_offset;		/* read only */
	__u64 doorbell_offset;		/* read and write, SVMX_PAGE_SIZE */
	__u64 sq_bytes;
	__u64 cq_bytes;
};

struct svmx_queue_destroy {
	__u32 size;
	__u32 flags;
	__u32 queue;
	__u32 reserved;
};

struct svmx_kick {
	__u32 size;
	__u32 flags;
	__u32 queue;
	__u32 reserved;
};

struct svmx_wait {
	__u32 size;
	__u32 flags;
	__u32 queue;
	__u32 index;			/* free-running, into the completion queue */
	__s64 timeout_ns;		/* from now on, or -1 for ever */
};

struct svmx_stats {
	__u32 size;
	__u32 flags;
	__u64 faults;
	__u64 grants;
	__u64 revocations;
	__u64 shared_grants;
	__u64 replays;
	__u64 cancels;
	__u64 retries;
	__u64 invalidations;
	__u64 ahead;
	__u64 ahead_lost;
	__u64 evictions;
	__u64 huge_grants;
	__u64 syncs;
	__u64 grant_ns[SVMX_HIST_BUCKETS];
	__u64 revoke_ns[SVMX_HIST_BUCKETS];
	__u64 replay_ns[SVMX_HIST_BUCKETS];
};

/* Pages ahead of use, in order, as the policy says (spec 9.7). */
struct svmx_acquire {
	__u32 size;
	__u32 flags;
	__u64 addr;
	__u64 len;			/* bytes, whole pages */
	__u64 done;			/* out: pages, also with an error */
};

#define SVMX_MAX_ACQUIRE_PAGES	262144

/* Pages back for the CPU (spec 9.7). */
struct svmx_release {
	__u32 size;
	__u32 flags;
	__u64 addr;
	__u64 len;			/* bytes, whole pages */
	__u64 done;			/* out: pages that the device had, also with an error */
};

/* How atomics on a range of addresses are served (spec 9.6). */
struct svmx_set_policy {
	__u32 size;
	__u32 flags;
	__u64 addr;
	__u64 len;			/* bytes, whole pages */
	__u32 policy;			/* SVMX_POLICY_* */
	__u32 reserved;
};

#define SVMX_POLICY_EXCLUSIVE	0
#define SVMX_POLICY_COHERENT	1
#define SVMX_POLICY_AUTO	2

/* Ranges of a context with another policy than EXCLUSIVE. */
#define SVMX_MAX_POLICIES	1024

#define SVMX_IOC_TYPE		0xb5
#define SVMX_IOC_INFO		_IOWR(SVMX_IOC_TYPE, 0x00, struct svmx_info)
#define SVMX_IOC_QUEUE_CREATE	_IOWR(SVMX_IOC_TYPE, 0x01, struct svmx_queue_create)
#define SVMX_IOC_QUEUE_DESTROY	_IOWR(SVMX_IOC_TYPE, 0x02, struct svmx_queue_destroy)
#define SVMX_IOC_KICK		_IOWR(SVMX_IOC_TYPE, 0x03, struct svmx_kick)
#define SVMX_IOC_WAIT		_IOWR(SVMX_IOC_TYPE, 0x04, struct svmx_wait)
#define SVMX_IOC_STATS		_IOWR(SVMX_IOC_TYPE, 0x05, struct svmx_stats)
#define SVMX_IOC_ACQUIRE_EXCLUSIVE	_IOWR(SVMX_IOC_TYPE, 0x06, struct svmx_acquire)
#define SVMX_IOC_RELEASE	_IOWR(SVMX_IOC_TYPE, 0x07, struct svmx_release)
#define SVMX_IOC_POLICY		_IOWR(SVMX_IOC_TYPE, 0x08, struct svmx_set_policy)

/*
 * Words of a queue's doorbell page, in bytes from its start; 32 bits each (spec 4.1).
 */

#define SVMX_PAGE_SIZE		4096
#define SVMX_DOORBELL_SQ_TAIL	0x000
#define SVMX_DOORBELL_CQ_HEAD	0x040
#define SVMX_DOORBELL_NEED_KICK	0x080
#define SVMX_DOORBELL_CQ_ARM	0x0c0

/*
 * Submission queue entries: 64 bytes, fields that a command does not use are zero (spec 5.1).
 */

struct svmx_sqe {
	__u8 opcode;			/* SVMX_OP_* */
	__u8 width;			/* SVMX_W* */
	__u16 flags;			/* SVMX_SQE_* */
	__u32 tag;			/* returned in the completion */
	__u64 addr;			/* of the element, or of the first */
	__u64 operand;
	__u64 compare;
	__u32 count;			/* elements of a bulk command */
	__s32 stride;			/* their distance in bytes */
	__u64 index_addr;
	__u64 arg0;
	__u64 arg1;			/* WAIT: SVMX_COND_* */
};

#define SVMX_OP_NOP		0x00
#define SVMX_OP_FENCE		0x01
#define SVMX_OP_READ		0x02
#define SVMX_OP_WRITE		0x03
#define SVMX_OP_FETCH_ADD	0x10
#define SVMX_OP_FETCH_AND	0x11
#define SVMX_OP_FETCH_OR	0x12
#define SVMX_OP_FETCH_XOR	0x13
#define SVMX_OP_FETCH_UMIN	0x14
#define SVMX_OP_FETCH_UMAX	0x15
#define SVMX_OP_FETCH_SMIN	0x16
#define SVMX_OP_FETCH_SMAX	0x17
#define SVMX_OP_SWAP		0x18
#define SVMX_OP_CAS		0x19
#define SVMX_OP_FETCH_FADD	0x1a
#define SVMX_OP_COPY		0x20
#define SVMX_OP_FILL		0x21
#define SVMX_OP_WAIT		0x28

#define SVMX_W8			0
#define SVMX_W32		2
#define SVMX_W64		3
#define SVMX_W128		4

#define SVMX_SQE_BULK		(1 << 0)
#define SVMX_SQE_INDEXED	(1 << 1)
#define SVMX_SQE_INDEX64	(1 << 2)
#define SVMX_SQE_OPERANDS	(1 << 3)
#define SVMX_SQE_STORE_OLD	(1 << 4)

#define SVMX_COND_EQ		0
#define SVMX_COND_NE		1
#define SVMX_COND_ULT		2
#define SVMX_COND_ULE		3
#define SVMX_COND_UGT		4
#define SVMX_COND_UGE		5
#define SVMX_COND_SLT		6
#define SVMX_COND_SLE		7
#define SVMX_COND_SGT		8
#define SVMX_COND_SGE		9

/* arg0 of a WAIT without end. */
#define SVMX_WAIT_FOREVER	(~(__u64)0)

/*
 * Completion queue entries: 32 bytes. The device writes head last, with release ordering: load it with
 * acquire ordering, and read the rest only when its phase is that of the index (spec 4.2).
 */

struct svmx_cqe {
	__u64 head;			/* svmx_cqe_tag() and so on */
	__u64 result;
	__u32 applied;			/* elements */
	__u32 sq_head;
	__u64 fault_addr;
};

#define SVMX_STATUS_SUCCESS		0
#define SVMX_STATUS_BAD_OPCODE		1
#define SVMX_STATUS_BAD_WIDTH		2
#define SVMX_STATUS_BAD_FLAGS		3
#define SVMX_STATUS_MISALIGNED		4
#define SVMX_STATUS_ADDRESS_RANGE	5
#define SVMX_STATUS_FAULT		6
#define SVMX_STATUS_PERMISSION		7
#define SVMX_STATUS_NOT_EXCLUSIVE	8
#define SVMX_STATUS_BAD_MEMORY		9
#define SVMX_STATUS_BAD_PAGE_TABLE	10
#define SVMX_STATUS_CANCELLED		11
#define SVMX_STATUS_NO_RESOURCES	12
#define SVMX_STATUS_BAD_DOORBELL	13
#define SVMX_STATUS_BAD_ID		14
#define SVMX_STATUS_BAD_RING		15
#define SVMX_STATUS_TIMEOUT		16

static inline __u32 svmx_cqe_tag(__u64 head)
{
	return (__u32)head;
}

static inline __u16 svmx_cqe_status(__u64 head)
{
	return (__u16)(head >> 32);
}

static inline int svmx_cqe_phase(__u64 head)
{
	return (int)(head >> 48) & 1;
}

/* The phase of the entry at a free-running index once it is written. */
static inline int svmx_ring_phase(__u32 index, unsigned int log2)
{
	return !((index >> log2) & 1);
}

#ifdef __cplusplus
}
#endif

#endif /* _UAPI_SVMX_H */
