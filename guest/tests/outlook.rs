// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The driver's own `outlook.rs`, compiled here: it needs nothing of the kernel.

use svmx::abi;
use svmx::abi::fault::AccessKind;
use svmx::abi::pci::PAGE_SIZE;
use zerocopy::FromZeros;

#[path = "../../guest-driver/outlook.rs"]
mod outlook;

use outlook::{Hint, MAX_WINDOW, Outlook};

const FAR: u64 = 1 << 30;

fn run(fault_id: u32, first: u64, pages: u16) -> Hint {
    Hint { fault_id, pages, va: first * PAGE_SIZE, access: AccessKind::ATOMIC }
}

/// Obtains what a fault at `page` asks for. Returns the pages.
fn serve(outlook: &mut Outlook, fault_id: u32, page: u64) -> Vec<u64> {
    let window = outlook.begin(fault_id, page * PAGE_SIZE + 8);
    std::iter::from_fn(|| outlook.next()).map(|(va, _)| va / PAGE_SIZE).take(window).collect()
}

/// An outlook whose window has grown to its most, by faults with numbers below 100, far below `FAR`.
fn grown() -> Outlook {
    let mut outlook = Outlook::new_zeroed();
    let mut page = 0;
    for fault_id in 0..20 {
        outlook.push(run(fault_id, page + 1, MAX_WINDOW as u16));
        page += 1 + serve(&mut outlook, fault_id, page).len() as u64;
    }
    outlook
}

#[test]
fn a_command_alone_with_its_memory_soon_faults_once_in_a_window() {
    let mut outlook = Outlook::new_zeroed();
    let (mut page, mut sizes) = (0, Vec::new());
    outlook.push(run(0, 1, 2000));
    for fault_id in 0..11 {
        let pages = serve(&mut outlook, fault_id, page);
        assert!(pages.iter().copied().eq(page + 1..page + 1 + pages.len() as u64), "in order, none left out");
        page += 1 + pages.len() as u64;
        sizes.push(1 + pages.len());
    }
    assert_eq!(sizes[..3], [2, 4, 8]);
    assert_eq!(sizes[10], MAX_WINDOW);
}

#[test]
fn a_window_whose_pages_are_taken_back_shrinks_to_nothing() {
    let mut outlook = grown();
    let mut sizes = Vec::new();
    let mut page = FAR;
    for fault_id in 100..110 {
        outlook.push(run(fault_id, page + 1, MAX_WINDOW as u16));
        let pages = serve(&mut outlook, fault_id, page);
        sizes.push(pages.len());
        // The command comes to the first of them, and it is gone.
        page = pages.first().copied().unwrap_or(page + 1);
    }
    assert_eq!(sizes[..3], [255, 127, 63]);
    assert!(sizes[8..].iter().all(|&size| size <= 1), "{sizes:?}");
}

#[test]
fn what_another_command_needed_is_forgotten() {
    let mut outlook = grown();
    outlook.push(run(100, FAR, 64));
    outlook.push(run(101, 2 * FAR, 2));
    assert_eq!(serve(&mut outlook, 101, 3 * FAR), [2 * FAR, 2 * FAR + 1]);
    // Also if nothing came with the fault.
    outlook.push(run(101, FAR, 64));
    assert!(serve(&mut outlook, 102, 4 * FAR).is_empty());
}

#[test]
fn what_is_left_is_kept_for_the_next_fault_of_the_command() {
    let mut outlook = Outlook::new_zeroed();
    for page in [7, 3, 9, 5, 2, 1] {
        outlook.push(run(1, FAR + page, 1));
    }
    assert_eq!(serve(&mut outlook, 1, 0), [FAR + 7]);
    // Not the fault's own page, which is known too.
    assert_eq!(serve(&mut outlook, 2, FAR + 3), [FAR + 9, FAR + 5, FAR + 2]);
    // One of the window was taken back: that says nothing of what comes behind it.
    assert_eq!(serve(&mut outlook, 3, FAR + 9), [FAR + 1]);
}

#[test]
fn records_beyond_what_is_kept_are_dropped() {
    let mut outlook = Outlook::new_zeroed();
    for page in 0..10 * MAX_WINDOW as u64 {
        outlook.push(run(1, FAR + 2 * page, 1));
    }
    let kept: Vec<_> = std::iter::from_fn(|| outlook.next()).collect();
    assert_eq!(kept.len(), MAX_WINDOW);
    assert_eq!(kept.last().map(|(va, _)| va / PAGE_SIZE), Some(FAR + 2 * MAX_WINDOW as u64 - 2));
    // There is room again.
    outlook.push(run(2, FAR, 1));
    assert_eq!(outlook.next().map(|(va, _)| va / PAGE_SIZE), Some(FAR));
}

#[test]
fn two_arrays_are_obtained_side_by_side() {
    let mut outlook = grown();
    outlook.push(run(100, FAR + 1, 100));
    outlook.push(run(100, 2 * FAR, 100));
    let pages = serve(&mut outlook, 100, FAR);
    assert_eq!(pages[..4], [FAR + 1, 2 * FAR, FAR + 2, 2 * FAR + 1]);
    assert_eq!(pages.len(), 200);
}

#[test]
fn a_fault_in_one_array_forgets_nothing_of_the_other() {
    let mut outlook = Outlook::new_zeroed();
    outlook.push(run(1, FAR + 1, 100));
    outlook.push(run(1, 2 * FAR, 100));
    assert_eq!(serve(&mut outlook, 1, FAR), [FAR + 1]);
    // The window was one page: the other array faults, and then nothing more for a while.
    assert_eq!(serve(&mut outlook, 2, 2 * FAR), [FAR + 2, 2 * FAR + 1, FAR + 3]);
    assert_eq!(serve(&mut outlook, 3, 2 * FAR + 2).len(), 7);
    let left: Vec<_> = std::iter::from_fn(|| outlook.next()).map(|(va, _)| va / PAGE_SIZE).collect();
    assert!(left.contains(&(FAR + 100)) && left.contains(&(2 * FAR + 99)), "{left:?}");
}
