/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Trace events of the driver: /sys/kernel/tracing/events/svmx. trace.rs beside this file calls them.
 *
 * docs/debugging.md says how they belong together. Names and fields are what scripts rely on: change
 * them as you would an interface.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM svmx

#ifndef SVMX_REASONS
#define SVMX_REASONS

/* Why a page is taken away, beyond the values of enum mmu_notifier_event. */
#define SVMX_REASON_EVICT	0x100
#define SVMX_REASON_END		0x101
#define SVMX_REASON_RELEASE	0x102
#define SVMX_REASON_POLICY	0x103
#define SVMX_REASON_UPGRADE	0x104

#endif

#if !defined(SVMX_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define SVMX_TRACE_H

#include <linux/errno.h>
#include <linux/mmu_notifier.h>
#include <linux/tracepoint.h>

/* For those who read the ring without the kernel's help, such as perf and trace-cmd. */
TRACE_DEFINE_ENUM(MMU_NOTIFY_UNMAP);
TRACE_DEFINE_ENUM(MMU_NOTIFY_CLEAR);
TRACE_DEFINE_ENUM(MMU_NOTIFY_PROTECTION_VMA);
TRACE_DEFINE_ENUM(MMU_NOTIFY_PROTECTION_PAGE);
TRACE_DEFINE_ENUM(MMU_NOTIFY_SOFT_DIRTY);
TRACE_DEFINE_ENUM(MMU_NOTIFY_RELEASE);
TRACE_DEFINE_ENUM(MMU_NOTIFY_MIGRATE);
TRACE_DEFINE_ENUM(MMU_NOTIFY_EXCLUSIVE);

#define svmx_show_reason(reason) __print_symbolic(reason,		\
	{ MMU_NOTIFY_UNMAP,		"UNMAP" },			\
	{ MMU_NOTIFY_CLEAR,		"CLEAR" },			\
	{ MMU_NOTIFY_PROTECTION_VMA,	"PROTECTION_VMA" },		\
	{ MMU_NOTIFY_PROTECTION_PAGE,	"PROTECTION_PAGE" },		\
	{ MMU_NOTIFY_SOFT_DIRTY,	"SOFT_DIRTY" },			\
	{ MMU_NOTIFY_RELEASE,		"RELEASE" },			\
	{ MMU_NOTIFY_MIGRATE,		"MIGRATE" },			\
	{ MMU_NOTIFY_EXCLUSIVE,		"EXCLUSIVE" },			\
	{ SVMX_REASON_EVICT,		"evict" },			\
	{ SVMX_REASON_END,		"end" },			\
	{ SVMX_REASON_RELEASE,		"release" },			\
	{ SVMX_REASON_POLICY,		"policy" },			\
	{ SVMX_REASON_UPGRADE,		"upgrade" })

/* What a command wanted: abi/src/fault.rs. */
#define svmx_show_kind(kind) __print_symbolic(kind,			\
	{ 1, "read" }, { 2, "write" }, { 3, "atomic" })

/* What a page-table entry allows: abi/src/pte.rs, as trace.rs numbers it. */
#define svmx_show_access(access) __print_symbolic(access,		\
	{ 0, "none" }, { 1, "read" }, { 2, "write" }, { 3, "atomic" }, { 4, "coherent" })

#define svmx_show_result(result) __print_symbolic(result,		\
	{ 0, "granted" },						\
	{ EAGAIN, "raced" },						\
	{ EPERM, "EPERM" },						\
	{ ENOMEM, "ENOMEM" },						\
	{ EFAULT, "EFAULT" },						\
	{ EOPNOTSUPP, "EOPNOTSUPP" })

/* A fault record was taken from the fault queue. */
TRACE_EVENT(svmx_fault,
	TP_PROTO(u32 device, u32 asid, u32 queue, u64 va, u32 kind),
	TP_ARGS(device, asid, queue, va, kind),
	TP_STRUCT__entry(
		__field(u64, va)
		__field(u32, device)
		__field(u32, asid)
		__field(u32, queue)
		__field(u32, kind)
	),
	TP_fast_assign(
		__entry->va = va;
		__entry->device = device;
		__entry->asid = asid;
		__entry->queue = queue;
		__entry->kind = kind;
	),
	TP_printk("device=%u asid=%u queue=%u va=0x%llx access=%s",
		  __entry->device, __entry->asid, __entry->queue, __entry->va,
		  svmx_show_kind(__entry->kind))
);

/* An attempt to obtain a page ended: granted, raced (an event came between), or an error. */
TRACE_EVENT(svmx_grant,
	TP_PROTO(u32 device, u32 asid, u64 page, u32 kind, u32 ahead, u32 result, u64 ns),
	TP_ARGS(device, asid, page, kind, ahead, result, ns),
	TP_STRUCT__entry(
		__field(u64, page)
		__field(u64, ns)
		__field(u32, device)
		__field(u32, asid)
		__field(u32, kind)
		__field(u32, ahead)
		__field(u32, result)
	),
	TP_fast_assign(
		__entry->page = page;
		__entry->ns = ns;
		__entry->device = device;
		__entry->asid = asid;
		__entry->kind = kind;
		__entry->ahead = ahead;
		__entry->result = result;
	),
	TP_printk("device=%u asid=%u page=0x%llx access=%s ahead=%u result=%s ns=%llu",
		  __entry->device, __entry->asid, __entry->page, svmx_show_kind(__entry->kind),
		  __entry->ahead, svmx_show_result(__entry->result), __entry->ns)
);

/* A fault was answered: go on. access=none tells the device to look again. ns is since the fault came. */
TRACE_EVENT(svmx_replay,
	TP_PROTO(u32 device, u32 asid, u32 queue, u64 page, u32 access, u64 ns),
	TP_ARGS(device, asid, queue, page, access, ns),
	TP_STRUCT__entry(
		__field(u64, page)
		__field(u64, ns)
		__field(u32, device)
		__field(u32, asid)
		__field(u32, queue)
		__field(u32, access)
	),
	TP_fast_assign(
		__entry->page = page;
		__entry->ns = ns;
		__entry->device = device;
		__entry->asid = asid;
		__entry->queue = queue;
		__entry->access = access;
	),
	TP_printk("device=%u asid=%u queue=%u page=0x%llx access=%s ns=%llu",
		  __entry->device, __entry->asid, __entry->queue, __entry->page,
		  svmx_show_access(__entry->access), __entry->ns)
);

/* A fault was answered: the command ends with this status (spec 5.9). ns is since the fault came. */
TRACE_EVENT(svmx_cancel,
	TP_PROTO(u32 device, u32 asid, u32 queue, u64 page, u32 status, u64 ns),
	TP_ARGS(device, asid, queue, page, status, ns),
	TP_STRUCT__entry(
		__field(u64, page)
		__field(u64, ns)
		__field(u32, device)
		__field(u32, asid)
		__field(u32, queue)
		__field(u32, status)
	),
	TP_fast_assign(
		__entry->page = page;
		__entry->ns = ns;
		__entry->device = device;
		__entry->asid = asid;
		__entry->queue = queue;
		__entry->status = status;
	),
	TP_printk("device=%u asid=%u queue=%u page=0x%llx status=%s ns=%llu",
		  __entry->device, __entry->asid, __entry->queue, __entry->page,
		  __print_symbolic(__entry->status,
			{ 6, "FAULT" }, { 7, "PERMISSION" }, { 8, "NOT_EXCLUSIVE" },
			{ 11, "CANCELLED" }, { 12, "NO_RESOURCES" }),
		  __entry->ns)
);

/* A page-table entry was cleared; the device may use the page until the SYNC of svmx_invalidate. */
TRACE_EVENT(svmx_revoke,
	TP_PROTO(u32 device, u32 asid, u64 page, u32 access, u32 reason),
	TP_ARGS(device, asid, page, access, reason),
	TP_STRUCT__entry(
		__field(u64, page)
		__field(u32, device)
		__field(u32, asid)
		__field(u32, access)
		__field(u32, reason)
	),
	TP_fast_assign(
		__entry->page = page;
		__entry->device = device;
		__entry->asid = asid;
		__entry->access = access;
		__entry->reason = reason;
	),
	TP_printk("device=%u asid=%u page=0x%llx access=%s reason=%s",
		  __entry->device, __entry->asid, __entry->page,
		  svmx_show_access(__entry->access), svmx_show_reason(__entry->reason))
);

/* A notifier's event is over: the device uses no page of [start, end) any more. ns is since they were cleared. */
TRACE_EVENT(svmx_invalidate,
	TP_PROTO(u32 device, u32 asid, u64 start, u64 end, u32 reason, u64 ns),
	TP_ARGS(device, asid, start, end, reason, ns),
	TP_STRUCT__entry(
		__field(u64, start)
		__field(u64, end)
		__field(u64, ns)
		__field(u32, device)
		__field(u32, asid)
		__field(u32, reason)
	),
	TP_fast_assign(
		__entry->start = start;
		__entry->end = end;
		__entry->ns = ns;
		__entry->device = device;
		__entry->asid = asid;
		__entry->reason = reason;
	),
	TP_printk("device=%u asid=%u start=0x%llx end=0x%llx reason=%s ns=%llu",
		  __entry->device, __entry->asid, __entry->start, __entry->end,
		  svmx_show_reason(__entry->reason), __entry->ns)
);

/* A device was declared dead; the kernel's log says why. */
TRACE_EVENT(svmx_dead,
	TP_PROTO(u32 device),
	TP_ARGS(device),
	TP_STRUCT__entry(
		__field(u32, device)
	),
	TP_fast_assign(
		__entry->device = device;
	),
	TP_printk("device=%u", __entry->device)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE svmx_trace
#include <trace/define_trace.h>
