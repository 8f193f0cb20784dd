/* SPDX-License-Identifier: GPL-2.0 */
/* What bindgen reads: functions that kernel::bindings lacks, and our own C helpers. */
#include <linux/hmm.h>
#include <linux/mmu_notifier.h>
#include <linux/rmap.h>
#include "svmx_helpers.h"
#include "svmx_trace.h"
