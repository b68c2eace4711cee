//! Checksums of a run's file, such that each part of it can be checked alone.
//!
//! The pages are cut into blocks; the sums of the blocks stand in the file's own footer. What follows (the last pages, as
//! far as the writer still had them, indexes, footer) is the tail; its sum stands in [`RunMeta`](super::RunMeta), outside
//! of the file. So a register's record stays small however large the run, and every byte is covered.

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc32fast::Hasher;
use parquet::file::metadata::ParquetMetaDataReader;
use serde::{Deserialize, Serialize};

/// Key of the file's metadata under which the sums of its blocks stand.
pub(super) const BLOCKS_KEY: &str = "watershed.blocks";

/// Blocks of a small file. A point read reads about this much of each column.
const BLOCK_BYTES: u64 = 64 << 10;
/// With more blocks than this each becomes twice as long: the footer is read whole.
const MAX_BLOCKS: usize = 8192;

/// The end of a run's file, as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    pub size_bytes: u64,
    /// CRC-32 (IEEE).
    pub crc32: u32,
}

/// Sums bytes up as they are written.
#[derive(Debug)]
pub(super) struct Summing {
    block_bytes: u64,
    max_blocks: usize,
    done: Vec<u32>,
    block: Hasher,
    /// What follows the blocks.
    tail: Option<Hasher>,
    whole: Hasher,
}

impl Default for Summing {
    fn default() -> Self {
        Self::new(BLOCK_BYTES, MAX_BLOCKS)
    }
}

impl Summing {
    fn new(block_bytes: u64, max_blocks: usize) -> Self {
        let (block, whole) = (Hasher::new(), Hasher::new());
        Self { block_bytes, max_blocks, done: Vec::new(), block, tail: None, whole }
    }

    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        self.whole.update(bytes);
        if let Some(tail) = &mut self.tail {
            tail.update(bytes);
            return;
        }
        while !bytes.is_empty() {
            let left = self.block_bytes - self.block.total_len();
            let part = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.block.update(&bytes[..part]);
            bytes = &bytes[part..];
            if self.block.total_len() == self.block_bytes {
                self.done.push(std::mem::take(&mut self.block).finalize());
                if self.done.len() == self.max_blocks {
                    self.double();
                }
            }
        }
    }

    fn double(&mut self) {
        let joined = self.done.chunks_exact(2).map(|pair| {
            let mut first = Hasher::new_with_initial_len(pair[0], self.block_bytes);
            first.combine(&Hasher::new_with_initial_len(pair[1], self.block_bytes));
            first.finalize()
        });
        self.done = joined.collect();
        self.block_bytes *= 2;
    }

    /// The tail begins here. The text is for the file's metadata.
    pub(super) fn end_pages(&mut self) -> String {
        let end = self.whole.total_len();
        self.tail = Some(Hasher::new());
        let mut sums = self.done.clone();
        if self.block.total_len() > 0 {
            sums.push(self.block.clone().finalize());
        }
        let bytes: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        format!("{} {end} {}", self.block_bytes, STANDARD.encode(bytes))
    }

    /// Of what followed the blocks.
    pub(super) fn tail(&self) -> Option<Tail> {
        let tail = self.tail.as_ref()?;
        Some(Tail { size_bytes: tail.total_len(), crc32: tail.clone().finalize() })
    }

    /// Of the whole file.
    pub(super) fn whole(&self) -> u32 {
        self.whole.clone().finalize()
    }
}

/// The sums of a file: its blocks, then the tail as the last one.
#[derive(Debug)]
pub(super) struct Sums {
    block_bytes: u64,
    /// Where the tail begins.
    pages_end: u64,
    size_bytes: u64,
    sums: Vec<u32>,
}

impl Sums {
    /// From a file's tail.
    ///
    /// # Errors
    /// If it is another one's, or another one than it was.
    pub(super) fn read(tail: &[u8], expected: Tail, size_bytes: u64) -> Result<Self, String> {
        if tail.len() as u64 != expected.size_bytes || crc32fast::hash(tail) != expected.crc32 {
            return Err("its end has another checksum than it was written with".to_owned());
        }
        Self::decode(tail, expected, size_bytes).ok_or_else(|| "its end does not say its checksums".to_owned())
    }

    fn decode(tail: &[u8], expected: Tail, size_bytes: u64) -> Option<Self> {
        let (rest, _magic) = tail.split_last_chunk::<4>()?;
        let (rest, length) = rest.split_last_chunk::<4>()?;
        let begin = rest.len().checked_sub(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        let metadata = ParquetMetaDataReader::decode_metadata(&rest[begin..]).ok()?;
        let stored = metadata.file_metadata().key_value_metadata()?;
        let text = stored.iter().find(|kv| kv.key == BLOCKS_KEY)?.value.as_deref()?;
        let mut words = text.split(' ');
        let block_bytes: u64 = words.next()?.parse().ok().filter(|bytes| *bytes > 0)?;
        let pages_end: u64 = words.next()?.parse().ok()?;
        let bytes = STANDARD.decode(words.next()?).ok()?;
        let mut sums: Vec<u32> = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let whole =
            pages_end + expected.size_bytes == size_bytes && sums.len() as u64 == pages_end.div_ceil(block_bytes);
        sums.push(expected.crc32);
        whole.then_some(Self { block_bytes, pages_end, size_bytes, sums })
    }

    /// Those parts of the file, each to be checked whole, that hold `range`.
    pub(super) fn parts(&self, range: &Range<u64>) -> Range<usize> {
        if range.is_empty() {
            return 0..0;
        }
        self.part_of(range.start)..self.part_of(range.end - 1) + 1
    }

    fn part_of(&self, offset: u64) -> usize {
        match offset < self.pages_end {
            true => usize::try_from(offset / self.block_bytes).expect("there are few blocks"),
            false => self.sums.len() - 1,
        }
    }

    /// The bytes of the parts.
    pub(super) fn bytes(&self, parts: &Range<usize>) -> Range<u64> {
        let start = |part: usize| match part == self.sums.len() {
            true => self.size_bytes,
            false => (part as u64 * self.block_bytes).min(self.pages_end),
        };
        start(parts.start)..start(parts.end)
    }

    /// Which of the parts, whose bytes these are, is not as it was written.
    pub(super) fn damaged(&self, parts: &Range<usize>, bytes: &[u8]) -> Option<Range<u64>> {
        let mut rest = bytes;
        parts.clone().find_map(|part| {
            let range = self.bytes(&(part..part + 1));
            let length = usize::try_from(range.end - range.start).expect("a part fits into memory");
            let (bytes, behind) = rest.split_at(length.min(rest.len()));
            rest = behind;
            (bytes.len() < length || crc32fast::hash(bytes) != self.sums[part]).then_some(range)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_become_longer_and_keep_their_sums() {
        for (length, block_bytes) in [(0, 16), (15, 16), (16, 16), (127, 16), (128, 32), (300, 64), (1024, 256)] {
            let bytes: Vec<u8> = (0..length).map(|i: u32| ((i * i) >> 3) as u8).collect();
            let mut summing = Summing::new(16, 8);
            for part in bytes.chunks(13) {
                summing.push(part);
            }
            let text = summing.end_pages();
            let sums = bytes.chunks(block_bytes).flat_map(|block| crc32fast::hash(block).to_le_bytes());
            let sums = STANDARD.encode(sums.collect::<Vec<u8>>());
            assert_eq!(text, format!("{block_bytes} {length} {sums}"));
            assert_eq!(summing.whole(), crc32fast::hash(&bytes));
            summing.push(b"tail");
            assert_eq!(summing.tail(), Some(Tail { size_bytes: 4, crc32: crc32fast::hash(b"tail") }));
            assert_eq!(summing.whole(), crc32fast::hash(&[&bytes[..], b"tail"].concat()));
        }
    }

    #[test]
    fn a_range_lies_in_the_parts_that_hold_it() {
        let sums = Sums { block_bytes: 10, pages_end: 25, size_bytes: 32, sums: vec![0; 4] };
        for (range, parts, bytes) in [
            (0..1, 0..1, 0..10),
            (9..11, 0..2, 0..20),
            (20..25, 2..3, 20..25),
            (24..26, 2..4, 20..32),
            (31..32, 3..4, 25..32),
            (0..32, 0..4, 0..32),
            (7..7, 0..0, 0..0),
        ] {
            assert_eq!((sums.parts(&range), sums.bytes(&parts)), (parts, bytes), "{range:?}");
        }
    }
}
