// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * svmx from C: the device and threads of the CPU add to the same counters, and nothing is lost.
 *
 * Usage: fetch_add [DEVICE]. Ends with 0 if every counter has its sum. A queue is used by one thread; everything
 * that crosses between it and the device is in the four functions from queue_submit() to queue_close().
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "svmx.h"

#define COUNTERS	4096	/* of 8 bytes: eight pages */
#define THREADS		2
#define ROUNDS		50	/* bulk commands, each adding 1 to every counter */
#define SINGLES		1000	/* commands that add 3 to one counter */
#define ADDITIONS	200000	/* by each thread */

/* 64 entries in each ring. */
#define RING_LOG2	6

struct queue {
	int fd;
	__u32 id;
	struct svmx_sqe *sq;
	const struct svmx_cqe *cq;
	unsigned char *doorbell;
	size_t sq_bytes, cq_bytes;
	__u32 sq_tail;		/* free-running, as all indices of rings */
	__u32 cq_head;
};

static void die(const char *what)
{
	fprintf(stderr, "fetch_add: %s: %s\n", what, strerror(errno));
	exit(1);
}

static __u32 *word(const struct queue *q, unsigned int offset)
{
	return (__u32 *)(q->doorbell + offset);
}

static void *map(int fd, __u64 offset, size_t bytes, int prot)
{
	void *p = mmap(NULL, bytes, prot, MAP_SHARED, fd, (off_t)offset);

	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

static void queue_open(struct queue *q, int fd)
{
	struct svmx_queue_create create = {
		.size = sizeof(create), .sq_log2 = RING_LOG2, .cq_log2 = RING_LOG2,
	};

	if (ioctl(fd, SVMX_IOC_QUEUE_CREATE, &create))
		die("SVMX_IOC_QUEUE_CREATE");
	*q = (struct queue){
		.fd = fd,
		.id = create.queue,
		.sq_bytes = create.sq_bytes,
		.cq_bytes = create.cq_bytes,
		.sq = map(fd, create.sq_offset, create.sq_bytes, PROT_READ | PROT_WRITE),
		.cq = map(fd, create.cq_offset, create.cq_bytes, PROT_READ),
		.doorbell = map(fd, create.doorbell_offset, SVMX_PAGE_SIZE, PROT_READ | PROT_WRITE),
	};
}

/*
 * Stores a doorbell. Release: the device that sees it sees what was written before. If the device does not poll the
 * page it has said so before its last look; the fence makes sure that one of us sees the other (spec 4.3).
 */
static void ring_doorbell(struct queue *q, unsigned int offset, __u32 value)
{
	__atomic_store_n(word(q, offset), value, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (__atomic_load_n(word(q, SVMX_DOORBELL_NEED_KICK), __ATOMIC_RELAXED)) {
		struct svmx_kick kick = { .size = sizeof(kick), .queue = q->id };

		if (ioctl(q->fd, SVMX_IOC_KICK, &kick))
			die("SVMX_IOC_KICK");
	}
}

/* Submits a command. The caller keeps no more than 1 << RING_LOG2 of them unconsumed. */
static void queue_submit(struct queue *q, const struct svmx_sqe *sqe)
{
	q->sq[q->sq_tail & ((1u << RING_LOG2) - 1)] = *sqe;
	ring_doorbell(q, SVMX_DOORBELL_SQ_TAIL, ++q->sq_tail);
}

/* Takes the next completion, and sleeps until it is there. */
static struct svmx_cqe queue_complete(struct queue *q)
{
	const struct svmx_cqe *slot = &q->cq[q->cq_head & ((1u << RING_LOG2) - 1)];
	struct svmx_wait wait = {
		.size = sizeof(wait), .queue = q->id, .index = q->cq_head, .timeout_ns = -1,
	};
	struct svmx_cqe cqe;

	/* Acquire: the rest of the entry, and all that the command wrote, is there with the phase. */
	while (svmx_cqe_phase(__atomic_load_n(&slot->head, __ATOMIC_ACQUIRE)) !=
	       svmx_ring_phase(q->cq_head, RING_LOG2)) {
		if (ioctl(q->fd, SVMX_IOC_WAIT, &wait) && errno != EINTR)
			die("SVMX_IOC_WAIT");
	}
	cqe = *slot;
	/* The slot is the device's again. */
	ring_doorbell(q, SVMX_DOORBELL_CQ_HEAD, ++q->cq_head);
	return cqe;
}

static void queue_close(struct queue *q)
{
	struct svmx_queue_destroy destroy = { .size = sizeof(destroy), .queue = q->id };

	munmap(q->sq, q->sq_bytes);
	munmap((void *)q->cq, q->cq_bytes);
	munmap(q->doorbell, SVMX_PAGE_SIZE);
	if (ioctl(q->fd, SVMX_IOC_QUEUE_DESTROY, &destroy))
		die("SVMX_IOC_QUEUE_DESTROY");
}

static void execute(struct queue *q, const struct svmx_sqe *sqe, __u32 elements)
{
	struct svmx_cqe cqe;

	queue_submit(q, sqe);
	cqe = queue_complete(q);
	if (svmx_cqe_status(cqe.head) != SVMX_STATUS_SUCCESS || cqe.applied != elements) {
		fprintf(stderr, "fetch_add: status %u, %u of %u elements, at %#llx\n", svmx_cqe_status(cqe.head),
			cqe.applied, elements, (unsigned long long)cqe.fault_addr);
		exit(1);
	}
}

static __u64 *counters;

/* The device and the CPU may be at the same counter: both sides are atomic, and the page goes to and fro. */
static void *add(void *unused)
{
	for (unsigned int i = 0; i < ADDITIONS; i++)
		__atomic_fetch_add(&counters[i % COUNTERS], 1, __ATOMIC_RELAXED);
	return unused;
}

static void add_on_device(struct queue *q)
{
	struct svmx_sqe bulk = {
		.opcode = SVMX_OP_FETCH_ADD, .width = SVMX_W64, .flags = SVMX_SQE_BULK,
		.addr = (__u64)(unsigned long)counters, .operand = 1, .count = COUNTERS, .stride = sizeof(*counters),
	};
	struct svmx_sqe single = { .opcode = SVMX_OP_FETCH_ADD, .width = SVMX_W64, .operand = 3 };

	for (unsigned int i = 0; i < ROUNDS; i++)
		execute(q, &bulk, COUNTERS);
	for (unsigned int i = 0; i < SINGLES; i++) {
		single.tag = i;
		single.addr = (__u64)(unsigned long)&counters[i % COUNTERS];
		execute(q, &single, 1);
	}
}

static __u64 expected(unsigned int counter)
{
	__u64 by_threads = THREADS * (ADDITIONS / COUNTERS + (counter < ADDITIONS % COUNTERS));

	return by_threads + ROUNDS + 3 * (SINGLES / COUNTERS + (counter < SINGLES % COUNTERS));
}

int main(int argc, char **argv)
{
	struct svmx_info info = { .size = sizeof(info) };
	pthread_t threads[THREADS];
	unsigned int wrong = 0;
	struct queue q;
	int fd;

	fd = open(argc > 1 ? argv[1] : "/dev/svmx0", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		die("open");
	if (ioctl(fd, SVMX_IOC_INFO, &info))
		die("SVMX_IOC_INFO");
	if (!(info.bulk_opcodes & (1ull << SVMX_OP_FETCH_ADD))) {
		fprintf(stderr, "fetch_add: the device has no bulk FETCH_ADD\n");
		return 1;
	}
	/* Exclusive access is for private anonymous memory. */
	counters = mmap(NULL, COUNTERS * sizeof(*counters), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			-1, 0);
	if (counters == MAP_FAILED)
		die("mmap");
	queue_open(&q, fd);

	for (unsigned int i = 0; i < THREADS; i++)
		if ((errno = pthread_create(&threads[i], NULL, add, NULL)))
			die("pthread_create");
	add_on_device(&q);
	for (unsigned int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	queue_close(&q);
	close(fd);

	for (unsigned int i = 0; i < COUNTERS; i++)
		wrong += counters[i] != expected(i);
	printf("%u counters, %u wrong\n", COUNTERS, wrong);
	return wrong != 0;
}
