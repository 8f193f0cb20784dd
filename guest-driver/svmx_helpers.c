// SPDX-License-Identifier: GPL-2.0
/* See svmx_helpers.h. */

#include <linux/backing-dev.h>
#include <linux/dma-mapping.h>
#include <linux/gfp.h>
#include <linux/hmm.h>
#include <linux/io.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/mmap_lock.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/string.h>
#include <linux/userfaultfd_k.h>

#include "svmx_helpers.h"

bool svmx_mmap_lock_is_contended(struct mm_struct *mm)
{
	return mmap_lock_is_contended(mm);
}

void svmx_mmu_interval_set_seq(struct mmu_interval_notifier *sub, unsigned long seq)
{
	mmu_interval_set_seq(sub, seq);
}

bool svmx_mmu_interval_read_retry(struct mmu_interval_notifier *sub, unsigned long seq)
{
	return mmu_interval_read_retry(sub, seq);
}

bool svmx_mmu_notifier_range_blockable(const struct mmu_notifier_range *range)
{
	return mmu_notifier_range_blockable(range);
}

void svmx_folio_put(struct folio *folio)
{
	folio_put(folio);
}

void svmx_put_page(struct page *page)
{
	put_page(page);
}

phys_addr_t svmx_page_to_phys(struct page *page)
{
	return page_to_phys(page);
}

phys_addr_t svmx_hmm_pfn_to_phys(unsigned long hmm_pfn)
{
	return hmm_pfn_to_phys(hmm_pfn);
}

unsigned int svmx_hmm_pfn_to_map_order(unsigned long hmm_pfn)
{
	return hmm_pfn_to_map_order(hmm_pfn);
}

unsigned long svmx_hmm_pfn_req(bool write)
{
	return HMM_PFN_REQ_FAULT | (write ? HMM_PFN_REQ_WRITE : 0);
}

unsigned long svmx_vm_shadow_stack(void)
{
	return VM_SHADOW_STACK;
}

void svmx_phys_mark_dirty(phys_addr_t phys)
{
	folio_mark_dirty(pfn_folio(PHYS_PFN(phys)));
}

int svmx_mmap_read_lock_killable(struct mm_struct *mm)
{
	return mmap_read_lock_killable(mm);
}

void svmx_mmap_read_unlock(struct mm_struct *mm)
{
	mmap_read_unlock(mm);
}

void svmx_mmap_write_lock(struct mm_struct *mm)
{
	mmap_write_lock(mm);
}

void svmx_mmap_write_unlock(struct mm_struct *mm)
{
	mmap_write_unlock(mm);
}

void svmx_vma_start_write(struct vm_area_struct *vma)
{
	vma_start_write(vma);
}

bool svmx_vma_faults_wait(struct vm_area_struct *vma)
{
	return userfaultfd_armed(vma) || (vma->vm_file && mapping_can_writeback(vma->vm_file->f_mapping));
}

bool svmx_mm_is_orphaned(struct mm_struct *mm)
{
#ifdef CONFIG_MEMCG
	return !rcu_access_pointer(mm->owner);
#else
	return false;
#endif
}

unsigned long svmx_hmm_pfn_flags(bool write)
{
	return HMM_PFN_VALID | (write ? HMM_PFN_WRITE : 0);
}

void svmx_allow_kill(void)
{
	allow_signal(SIGKILL);
}

int svmx_give_back(unsigned long start, unsigned long pages)
{
	long done = get_user_pages_unlocked(start, pages, NULL, 0);

	if (done < 0)
		return done;
	return done == pages ? 0 : -EFAULT;
}

struct svmx_charge svmx_charge_begin(struct mm_struct *mm)
{
	struct svmx_charge charge = { .memcg = get_mem_cgroup_from_mm(mm) };

	charge.outer = set_active_memcg(charge.memcg);
	return charge;
}

void svmx_charge_end(struct svmx_charge charge)
{
	set_active_memcg(charge.outer);
	mem_cgroup_put(charge.memcg);
}

/* Charged, and an error where the cgroup has no room: nobody is killed for these pages. */
gfp_t svmx_gfp_for_process(void)
{
	return GFP_KERNEL_ACCOUNT | __GFP_RETRY_MAYFAIL | __GFP_NOWARN;
}

void svmx_vma_init_pfnmap(struct vm_area_struct *vma, const struct vm_operations_struct *ops)
{
	vm_flags_set(vma, VM_IO | VM_PFNMAP | VM_DONTCOPY | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_ops = ops;
}

unsigned long svmx_dma_pfn(const void *cpu_addr)
{
	if (is_vmalloc_addr(cpu_addr))
		return vmalloc_to_pfn(cpu_addr);
	return page_to_pfn(virt_to_page(cpu_addr));
}

/* TASK_COMM_LEN bytes. */
void svmx_current_comm(char *comm)
{
	strscpy_pad(comm, current->comm, TASK_COMM_LEN);
}

void svmx_init_waitqueue_head(struct wait_queue_head *wq)
{
	init_waitqueue_head(wq);
}

/* 0, -ETIME, or -ERESTARTSYS; a negative timeout never ends. */
long svmx_wait_event(struct wait_queue_head *wq, bool (*done)(void *), void *data, s64 timeout_ns)
{
	ktime_t timeout = timeout_ns < 0 ? KTIME_MAX : timeout_ns;

	return wait_event_interruptible_hrtimeout(*wq, done(data), timeout);
}

void svmx_wait_event_uninterruptible(struct wait_queue_head *wq, bool (*done)(void *), void *data)
{
	wait_event(*wq, done(data));
}

void svmx_wake_up_all(struct wait_queue_head *wq)
{
	wake_up_all(wq);
}

struct workqueue_struct *svmx_alloc_workqueue(void)
{
	return alloc_workqueue("svmx", WQ_UNBOUND | WQ_HIGHPRI, 0);
}

/* pci_enable_atomic_ops_to_root() wants a root port that says it completes them; QEMU's does not. */
int svmx_pci_set_atomic_requester(struct pci_dev *pdev)
{
	return pcie_capability_set_word(pdev, PCI_EXP_DEVCTL2, PCI_EXP_DEVCTL2_ATOMIC_REQ);
}

/* -EOPNOTSUPP if an IOMMU or bounce buffers stand between the device and memory. */
int svmx_dma_check_identity(struct device *dev)
{
	struct page *page = alloc_page(GFP_KERNEL);
	dma_addr_t addr;
	int ret = 0;

	if (!page)
		return -ENOMEM;
	addr = dma_map_page(dev, page, 0, PAGE_SIZE, DMA_BIDIRECTIONAL);
	if (dma_mapping_error(dev, addr)) {
		ret = -EIO;
		goto out;
	}
	if (addr != page_to_phys(page))
		ret = -EOPNOTSUPP;
	dma_unmap_page(dev, addr, PAGE_SIZE, DMA_BIDIRECTIONAL);
out:
	__free_page(page);
	return ret;
}

void *svmx_memremap_wb(phys_addr_t start, size_t size)
{
	return memremap(start, size, MEMREMAP_WB);
}
