// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Can this machine's KVM run Linux? Opening /dev/kvm proves nothing, so a 64-bit guest of a few
//! instructions is run, in a process of its own that can be ended if it hangs.

// `set_user_memory_region` is unsafe: KVM goes on using the memory.
#![expect(unsafe_code)]

use crate::process::Running;
use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// The hidden command of xtask that runs the probe.
pub(crate) const COMMAND: &str = "kvm-probe";
/// A guest of twenty instructions that isn't done by then never will be.
const LIMIT: Duration = Duration::from_secs(3);

const MEMORY: usize = 0x10000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
const CODE: u64 = 0x4000;
const DATA: u64 = 0x8000;

/// `lock cmpxchg16b` on DATA, `rorx` (BMI2) into DATA + 16, `xsetbv`, `xsave` to DATA + 4096, `hlt`.
#[rustfmt::skip]
const PROGRAM: [u8; 54] = [
    0x31, 0xc0,                         // xor eax, eax
    0x31, 0xd2,                         // xor edx, edx
    0xbb, 0x01, 0x00, 0x00, 0x00,       // mov ebx, 1
    0xb9, 0x02, 0x00, 0x00, 0x00,       // mov ecx, 2
    0xbf, 0x00, 0x80, 0x00, 0x00,       // mov edi, 0x8000
    0xf0, 0x48, 0x0f, 0xc7, 0x0f,       // lock cmpxchg16b [rdi]
    0xc4, 0xe3, 0x7b, 0xf0, 0xc3, 0x01, // rorx eax, ebx, 1
    0x89, 0x47, 0x10,                   // mov [rdi + 16], eax
    0x31, 0xc9,                         // xor ecx, ecx
    0x31, 0xd2,                         // xor edx, edx
    0xb8, 0x03, 0x00, 0x00, 0x00,       // mov eax, 3
    0x0f, 0x01, 0xd1,                   // xsetbv
    0xbf, 0x00, 0x90, 0x00, 0x00,       // mov edi, 0x9000
    0x0f, 0xae, 0x27,                   // xsave [rdi]
    0xf4,                               // hlt
];

/// Probes in a process of its own; the reason if KVM can't be used.
pub(crate) async fn probe() -> Result<(), String> {
    let attempt = async {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(COMMAND).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut running = Running::start(&mut command)?;
        let mut stdout = running.child().stdout.take().context("no stdout")?;
        let mut said = String::new();
        match tokio::time::timeout(LIMIT, stdout.read_to_string(&mut said)).await {
            Ok(read) => read?,
            Err(_) => bail!("a guest of a few instructions did not end in {} s", LIMIT.as_secs()),
        };
        let status = running.wait().await?;
        ensure!(
            status.success(),
            "{}",
            if said.is_empty() { crate::process::describe(status) } else { said.trim().into() }
        );
        Ok(())
    };
    attempt.await.map_err(|error: anyhow::Error| format!("{error:#}"))
}

/// What the hidden command does: prints the reason and fails, or prints nothing.
pub(crate) fn run_here() -> u8 {
    match run_guest() {
        Ok(()) => 0,
        Err(error) => {
            println!("{error:#}");
            1
        }
    }
}

fn run_guest() -> Result<()> {
    let kvm = Kvm::new().context("/dev/kvm can't be opened")?;
    let vm = kvm.create_vm().context("KVM can't create a VM")?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)])?;
    map(&vm, &memory)?;
    load(&memory)?;
    let mut vcpu = vm.create_vcpu(0).context("KVM can't create a CPU")?;
    let cpuid =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM doesn't say what its CPU can do")?;
    vcpu.set_cpuid2(&cpuid).context("KVM refuses its own CPUID")?;
    enter_long_mode(&vcpu)?;

    match vcpu.run() {
        Ok(VcpuExit::Hlt) => {}
        Ok(exit) => {
            let exit = format!("{exit:?}");
            let rip = vcpu.get_regs().map_or(0, |regs| regs.rip);
            bail!("its CPU stops at {} of a simple 64-bit program ({exit})", instruction(rip));
        }
        Err(error) => {
            let rip = vcpu.get_regs().map_or(0, |regs| regs.rip);
            bail!("its CPU stops at {} of a simple 64-bit program ({error})", instruction(rip));
        }
    }
    let low: u64 = memory.read_obj(GuestAddress(DATA))?;
    let high: u64 = memory.read_obj(GuestAddress(DATA + 8))?;
    ensure!((low, high) == (1, 2), "its `lock cmpxchg16b` does not work");
    let rotated: u32 = memory.read_obj(GuestAddress(DATA + 16))?;
    ensure!(rotated == 0x8000_0000, "its BMI2 instructions do not work");
    Ok(())
}

fn map(vm: &VmFd, memory: &GuestMemoryMmap<()>) -> Result<()> {
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
    };
    // SAFETY: the region is exactly the mapping that `memory` owns. The caller keeps `memory` alive until the
    // process is done with the VM: both are dropped at the end of `run_guest`, after the last `run`, and
    // nothing else in this process holds a reference into it.
    unsafe { vm.set_user_memory_region(region) }.context("KVM refuses memory")
}

/// Page tables that map the first 2 MiB onto themselves, and the program.
fn load(memory: &GuestMemoryMmap<()>) -> Result<()> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    memory.write_obj(PDPT | PRESENT_WRITABLE, GuestAddress(PML4))?;
    memory.write_obj(PAGE_DIRECTORY | PRESENT_WRITABLE, GuestAddress(PDPT))?;
    memory.write_obj(PRESENT_WRITABLE | LARGE, GuestAddress(PAGE_DIRECTORY))?;
    memory.write_slice(&PROGRAM, GuestAddress(CODE))?;
    Ok(())
}

fn enter_long_mode(vcpu: &VcpuFd) -> Result<()> {
    let mut sregs = vcpu.get_sregs()?;
    let flat = kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: 8,
        type_: 3,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment { type_: 11, l: 1, ..flat };
    sregs.ds = kvm_segment { selector: 16, db: 1, ..flat };
    (sregs.es, sregs.ss, sregs.fs, sregs.gs) = (sregs.ds, sregs.ds, sregs.ds, sregs.ds);
    sregs.cr3 = PML4;
    // PAE, OSFXSR, OSXSAVE.
    sregs.cr4 = (1 << 5) | (1 << 9) | (1 << 18);
    // PE, MP, ET, NE, WP, PG.
    sregs.cr0 = 1 | (1 << 1) | (1 << 4) | (1 << 5) | (1 << 16) | (1 << 31);
    // LME, LMA.
    sregs.efer = (1 << 8) | (1 << 10);
    vcpu.set_sregs(&sregs).context("KVM refuses 64-bit mode")?;
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rflags) = (CODE, 2);
    vcpu.set_regs(&regs)?;
    Ok(())
}

/// The instruction of [`PROGRAM`] at `rip`, in words.
fn instruction(rip: u64) -> &'static str {
    match rip.wrapping_sub(CODE) {
        19..24 => "`lock cmpxchg16b`",
        24..30 => "`rorx` (BMI2)",
        42..45 => "`xsetbv`",
        45..53 => "`xsave`",
        0..54 => "an instruction",
        _ => "an exception",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_named_by_their_place() {
        let name = |at: usize| instruction(CODE + at as u64);
        let find = |bytes: &[u8]| PROGRAM.windows(bytes.len()).position(|window| window == bytes).unwrap();
        assert_eq!(name(find(&[0xf0, 0x48, 0x0f, 0xc7])), "`lock cmpxchg16b`");
        assert_eq!(name(find(&[0xc4, 0xe3])), "`rorx` (BMI2)");
        assert_eq!(name(find(&[0x0f, 0x01, 0xd1])), "`xsetbv`");
        assert_eq!(name(find(&[0x0f, 0xae, 0x27])), "`xsave`");
        assert_eq!(instruction(0), "an exception");
    }
}
