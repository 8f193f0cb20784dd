/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Inline functions and macros of the kernel as real functions, for Rust to call.
 *
 * No behaviour of its own belongs here beyond what a macro's expansion forces into C.
 */
#ifndef SVMX_HELPERS_H
#define SVMX_HELPERS_H

#include <linux/mm_types.h>
#include <linux/mmu_notifier.h>
#include <linux/pci.h>
#include <linux/types.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

/* mm/ */
bool svmx_mmap_lock_is_contended(struct mm_struct *mm);
void svmx_mmu_interval_set_seq(struct mmu_interval_notifier *sub, unsigned long seq);
bool svmx_mmu_interval_read_retry(struct mmu_interval_notifier *sub, unsigned long seq);
bool svmx_mmu_notifier_range_blockable(const struct mmu_notifier_range *range);
void svmx_folio_put(struct folio *folio);
void svmx_put_page(struct page *page);
phys_addr_t svmx_page_to_phys(struct page *page);
phys_addr_t svmx_hmm_pfn_to_phys(unsigned long hmm_pfn);
unsigned int svmx_hmm_pfn_to_map_order(unsigned long hmm_pfn);
unsigned long svmx_hmm_pfn_req(bool write);
/* The flag of mappings that are shadow stacks, or zero. */
unsigned long svmx_vm_shadow_stack(void);
void svmx_phys_mark_dirty(phys_addr_t phys);
int svmx_mmap_read_lock_killable(struct mm_struct *mm);
void svmx_mmap_read_unlock(struct mm_struct *mm);
void svmx_mmap_write_lock(struct mm_struct *mm);
void svmx_mmap_write_unlock(struct mm_struct *mm);
void svmx_vma_start_write(struct vm_area_struct *vma);
/* Whether page faults in the mapping wait for user space, or for a file system. */
bool svmx_vma_faults_wait(struct vm_area_struct *vma);
/* Whether no task has the memory any more; false where the kernel can't tell. */
bool svmx_mm_is_orphaned(struct mm_struct *mm);
unsigned long svmx_hmm_pfn_flags(bool write);

/* What a thread allocates on behalf of a process; see charge.rs. */
struct svmx_charge {
	struct mem_cgroup *memcg;
	struct mem_cgroup *outer;
};
struct svmx_charge svmx_charge_begin(struct mm_struct *mm);
void svmx_charge_end(struct svmx_charge charge);
gfp_t svmx_gfp_for_process(void);

/* Mappings of device memory into user space */
int svmx_give_back(unsigned long start, unsigned long pages);
void svmx_vma_init_pfnmap(struct vm_area_struct *vma, const struct vm_operations_struct *ops);
unsigned long svmx_dma_pfn(const void *cpu_addr);

/* Tasks */
void svmx_current_comm(char *comm);

/* Waiting */
void svmx_init_waitqueue_head(struct wait_queue_head *wq);
long svmx_wait_event(struct wait_queue_head *wq, bool (*done)(void *), void *data, s64 timeout_ns);
void svmx_wait_event_uninterruptible(struct wait_queue_head *wq, bool (*done)(void *), void *data);
void svmx_wake_up_all(struct wait_queue_head *wq);

/* Threads */
void svmx_allow_kill(void);

/* Workqueues */
struct workqueue_struct *svmx_alloc_workqueue(void);

/* PCI and DMA */
int svmx_pci_set_atomic_requester(struct pci_dev *pdev);
int svmx_dma_check_identity(struct device *dev);
void *svmx_memremap_wb(phys_addr_t start, size_t size);

#endif
