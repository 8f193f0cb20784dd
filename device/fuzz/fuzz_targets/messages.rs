// SPDX-License-Identifier: Apache-2.0 OR MIT

//! [`svmx_fuzz::messages`] under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| svmx_fuzz::messages(input));
