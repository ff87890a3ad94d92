//! Damage: what happens to a file on its way, and what somebody with bad intent does to it.

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};

/// The same seed makes the same damage.
pub struct Random(SplitMix64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(SplitMix64::seed_from_u64(seed))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `end`; 0 if `end` is.
    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end.max(1) as u64) as usize
    }

    /// One of some things.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// Part of `bytes`, short ones more often than long ones.
    fn part(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let start = self.below(bytes.len());
        let longest = 1 << self.below(10);
        start..(start + 1 + self.below(longest)).min(bytes.len())
    }
}

/// Inputs do not grow beyond this.
const MAX_LENGTH: usize = 1 << 20;

/// Numbers at whose edges readers go wrong, as they stand in files: LEB128 and varints, and fixed widths.
const EDGES: [&[u8]; 12] = [
    &[0],
    &[1],
    &[0x7f],
    &[0x80],
    &[0xff],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0xff, 0xff, 0xff, 0xff, 0x07],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80],
    &[0xff, 0xff, 0xff, 0xff],
    &[0, 0, 0, 0x80],
    &[0, 0, 0xc0, 0x7f],
];

/// Damages `bytes` once or a few times; `others` are files that parts may come from, `words` what the format knows.
pub fn mutate(bytes: &mut Vec<u8>, others: &[Vec<u8>], words: &[&[u8]], random: &mut Random) {
    for _ in 0..1 + random.below(6) {
        once(bytes, others, words, random);
    }
    bytes.truncate(MAX_LENGTH);
}

fn once(bytes: &mut Vec<u8>, others: &[Vec<u8>], words: &[&[u8]], random: &mut Random) {
    if bytes.is_empty() {
        bytes.extend_from_slice(random.pick(others).as_slice());
        return;
    }
    let at = random.below(bytes.len());
    match random.below(10) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.bits() as u8,
        2 => bytes[at] = bytes[at].wrapping_add(1).wrapping_sub(2 * (random.below(2) as u8)),
        3 => {
            let edge = random.pick(&EDGES);
            let end = (at + edge.len()).min(bytes.len());
            bytes.splice(at..end, edge.iter().copied());
        }
        4 => drop(bytes.drain(random.part(bytes))),
        5 => {
            let part = bytes[random.part(bytes)].to_vec();
            bytes.splice(at..at, part);
        }
        6 => {
            let other = random.pick(others);
            let part = if other.is_empty() { vec![] } else { other[random.part(other)].to_vec() };
            let end = if random.below(2) == 0 { at } else { (at + part.len()).min(bytes.len()) };
            bytes.splice(at..end, part);
        }
        7 => bytes.truncate(at),
        8 => {
            let word = random.pick(words).to_vec();
            bytes.splice(at..at, word);
        }
        _ => {
            // A word in the place of another: the lengths round it stay right if the two are as long.
            let (from, to) = (random.pick(words), random.pick(words));
            let place = bytes.windows(from.len().max(1)).position(|window| window == *from);
            if let Some(place) = place {
                bytes.splice(place..place + from.len(), to.iter().copied());
            }
        }
    }
}
