// SPDX-License-Identifier: GPL-2.0
/* Defines the trace events of svmx_trace.h, and what Rust calls of them. */

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include "svmx_trace.h"
