// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Whatever a client sends: the server lives, takes no more memory than it says, and answers the good messages
//! among the bad ones.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use proptest::collection::vec;
use proptest::prelude::*;
use svmx_device::vfio_user::feed::{Chunk, feed};
use svmx_device::vfio_user::wire::MAX_MESSAGE;
use svmx_device::vfio_user::{ConnectionError, End};

use crate::allocations;
use crate::client::*;
use crate::device::{TestDevice, description, memory};
use crate::dma::{map, unmap};

/// What a server may allocate at a time: its buffers, and what the device of these tests notes.
const LARGEST: usize = 2 * MAX_MESSAGE;

/// Messages that a sane client could send.
fn valid() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let page = (0..16u64).prop_map(|page| page << 12);
    prop_oneof![
        Just((VERSION, HELLO.to_vec())),
        (page.clone(), page.clone(), 0..4u32).prop_map(|(at, size, flags)| (DMA_MAP, map(at, size, flags))),
        (page.clone(), page, 0..3u32).prop_map(|(at, size, flags)| (DMA_UNMAP, unmap(at, size, flags))),
        Just((GET_INFO, words([16, 0, 0, 0]))),
        (0..5u32, 0..90u32).prop_map(|(index, argsz)| {
            (GET_REGION_INFO, [words([argsz, 0, index, 0]), vec![0; 16]].concat())
        }),
        (0..5u32).prop_map(|index| (GET_REGION_IO_FDS, words([16, 0, index, 0]))),
        (0..4u32).prop_map(|index| (GET_IRQ_INFO, words([16, 0, index, 0]))),
        (0..0x40u32, 0..4u32, 0..5u32, 0..20u32)
            .prop_map(|(flags, index, start, count)| (SET_IRQS, words([20, flags, index, start, count]))),
        (0..5u32, 0..70u64, 0..70u32)
            .prop_map(|(region, at, count)| (REGION_READ, access(region, at, count))),
        (0..5u32, 0..70u64, vec(any::<u8>(), 0..70))
            .prop_map(|(region, at, data)| (REGION_WRITE, write(region, at, &data))),
        Just((RESET, vec![])),
    ]
}

#[derive(Clone, Debug)]
struct Sent {
    bytes: Vec<u8>,
    fds: usize,
    answered: bool,
}

/// A message that can be framed: valid, or valid but for some bytes and its length, or anything.
fn framed() -> impl Strategy<Value = Sent> {
    let mutated = (valid(), vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), 0..4usize, any::<bool>())
        .prop_map(|((command, mut payload), changes, cut, grow)| {
            for (at, value) in changes {
                if !payload.is_empty() {
                    let at = at.index(payload.len());
                    payload[at] = value;
                }
            }
            let length = if grow { payload.len() + cut } else { payload.len().saturating_sub(cut) };
            payload.resize(length, 0);
            (command, payload)
        });
    let anything = (0..24u16, vec(any::<u8>(), 0..200));
    let message_of = prop_oneof![3 => valid(), 3 => mutated, 1 => anything];
    let flags = prop_oneof![8 => Just(0u32), 1 => Just(0x10), 1 => any::<u32>()];
    let fds = prop_oneof![6 => Just(0usize), 3 => Just(1), 1 => 2..40usize];
    (message_of, any::<u16>(), flags, fds).prop_map(|((command, mut payload), id, flags, fds)| {
        // A version that can't be spoken would be the last message.
        if command == VERSION {
            payload.iter_mut().take(2).for_each(|byte| *byte = 0);
        }
        let answered = flags & 0xf != 1 && flags & 0x10 == 0;
        Sent { bytes: message(id, command, flags, &payload), fds, answered }
    })
}

/// Runs a server on the calling thread, which then is the one whose allocations count.
fn run(chunks: &[Chunk<'_>]) -> (Result<End, ConnectionError>, Vec<u8>, TestDevice) {
    let description = description();
    let mut device = TestDevice::default();
    allocations::largest();
    let (end, answers) = feed(&description, &mut device, chunks).unwrap();
    assert!(allocations::largest() <= LARGEST);
    let state = device.0.lock();
    assert_eq!((state.disconnected, state.maps.len(), state.events.len()), (1, 0, 0));
    drop(state);
    (end, answers, device)
}

/// Identifier, command and flags of each answer.
fn parse(mut answers: &[u8]) -> Vec<(u16, u16, u32, Vec<u8>)> {
    let mut parsed = Vec::new();
    while !answers.is_empty() {
        let half = |at: usize| u16::from_ne_bytes([answers[at], answers[at + 1]]);
        let word = |at: usize| u32::from_ne_bytes(answers[at..at + 4].try_into().unwrap());
        let size = word(4) as usize;
        let failed = word(8) == 0x21;
        assert!(failed || word(8) == 1);
        assert!(!failed || (size == 16 && word(12) != 0), "errors have an errno and nothing else");
        parsed.push((half(0), half(2), word(8), answers[16..size].to_vec()));
        answers = &answers[size..];
    }
    parsed
}

fn chunks<'a>(sent: &'a [Sent], fds: &'a [BorrowedFd<'a>]) -> Vec<Chunk<'a>> {
    sent.iter().map(|sent| Chunk { bytes: &sent.bytes, fds: &fds[..sent.fds] }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn every_framed_message_is_answered_and_the_good_ones_rightly(
        mut sent in vec(framed(), 1..20),
        last in any::<u16>(),
    ) {
        let files: Vec<File> = (0..40).map(|_| memory(1 << 16)).collect();
        // At the end a version, in case there was none, and a write and a read whose answer is known.
        for (command, payload) in
            [(VERSION, HELLO.to_vec()), (REGION_WRITE, write(0, 3, b"good")), (REGION_READ, access(0, 3, 4))]
        {
            sent.push(Sent { bytes: message(last, command, 0, &payload), fds: 0, answered: true });
        }
        let (end, answers, _) = run(&chunks(&sent, &borrow(&files)));
        prop_assert_eq!(end.unwrap(), End::HungUp);
        let answers = parse(&answers);
        let asked: Vec<_> = sent.iter().filter(|sent| sent.answered).map(|sent| sent.bytes[..4].to_vec()).collect();
        let answered: Vec<_> =
            answers.iter().map(|(id, command, ..)| [id.to_ne_bytes(), command.to_ne_bytes()].concat()).collect();
        prop_assert_eq!(answered, asked);
        prop_assert_eq!(&answers.last().unwrap().3, &write(0, 3, b"good"));
    }

    #[test]
    fn any_bytes_in_any_pieces(pieces in vec((vec(any::<u8>(), 1..300), 0..20usize), 0..20)) {
        let files: Vec<File> = (0..20).map(|_| memory(4096)).collect();
        let fds = borrow(&files);
        let chunks: Vec<_> = pieces.iter().map(|(bytes, n)| Chunk { bytes, fds: &fds[..*n] }).collect();
        let (end, answers, _) = run(&chunks);
        use ConnectionError::{NoCommonVersion, Unframed};
        prop_assert!(matches!(end, Ok(End::HungUp) | Err(Unframed(_) | NoCommonVersion)), "{end:?}");
        parse(&answers);
    }

    #[test]
    fn good_messages_in_any_pieces(sent in vec(valid(), 1..20), cuts in vec(1..40usize, 1..8)) {
        let bytes: Vec<u8> = [(VERSION, HELLO.to_vec())].into_iter().chain(sent.clone())
            .flat_map(|(command, payload)| message(command, command, 0, &payload)).collect();
        let mut pieces = Vec::new();
        let mut rest = &bytes[..];
        for &cut in cuts.iter().cycle() {
            if rest.is_empty() { break }
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            pieces.push(Chunk { bytes: piece, fds: &[] });
            rest = after;
        }
        let whole = run(&[Chunk { bytes: &bytes, fds: &[] }]).1;
        prop_assert_eq!(run(&pieces).1, whole);
    }
}

#[test]
fn a_descriptor_of_anything_may_come() {
    let (reader, writer) = std::io::pipe().unwrap();
    let hello = message(0, VERSION, 0, HELLO);
    let bytes = message(1, DMA_MAP, 0, &map(0, 4096, 3));
    for fd in [reader.as_fd(), writer.as_fd()] {
        let chunks = [Chunk { bytes: &hello, fds: &[] }, Chunk { bytes: &bytes, fds: &[fd] }];
        assert_eq!(run(&chunks).0.unwrap(), End::HungUp);
    }
}
