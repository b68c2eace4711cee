//! Avro's binary encoding, byte by byte.

use crate::decode::fault::{Fault, Result};

/// Reads one record. Whatever its bytes are, the work and the memory that they make are bounded by their number.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    /// From where messages count.
    length: usize,
    /// Values that may still be visited: most take a byte at least, but `null` and empty records take none, and an array
    /// can have any number of them.
    steps: usize,
    /// Bytes that values may still take beyond those of the record: symbols of enums.
    room: usize,
}

/// Values that a record may have for each of its bytes, and besides.
const STEPS_PER_BYTE: usize = 100;
const MORE_STEPS: usize = 1_000;
/// A record grows by no more: with it a batch of records stays below the 2 GiB of a column, see `Enum` of `plan`.
const ROOM: usize = 512 << 20;

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let steps = bytes.len().saturating_mul(STEPS_PER_BYTE).saturating_add(MORE_STEPS);
        Self { bytes, length: bytes.len(), steps, room: ROOM }
    }

    /// Takes note of one more value.
    #[inline]
    pub(super) fn step(&mut self) -> Result<()> {
        if self.steps == 0 {
            return Err(Fault::record(format!(
                "the Avro record has far more values than its {} bytes can hold",
                self.length
            )));
        }
        self.steps -= 1;
        Ok(())
    }

    /// Takes note of `bytes` that are not the record's own.
    #[inline]
    pub(super) fn grow(&mut self, bytes: usize) -> Result<()> {
        let room = self.room.checked_sub(bytes);
        self.room = room.ok_or_else(|| Fault::record(format!("the Avro record grows by more than {ROOM} bytes")))?;
        Ok(())
    }

    #[inline]
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        match self.bytes.split_at_checked(count) {
            Some((taken, rest)) => {
                self.bytes = rest;
                Ok(taken)
            }
            None => Err(self.truncated()),
        }
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("so many were taken"))
    }

    #[inline]
    pub(super) fn long(&mut self) -> Result<i64> {
        let mut number = 0_u64;
        for (i, byte) in self.bytes.iter().enumerate().take(10) {
            let low = u64::from(byte & 0x7f);
            if i == 9 && low > 1 {
                break;
            }
            number |= low << (7 * i);
            if byte & 0x80 == 0 {
                self.bytes = &self.bytes[i + 1..];
                return Ok((number >> 1).cast_signed() ^ -((number & 1).cast_signed()));
            }
        }
        if self.bytes.len() < 10 {
            return Err(self.truncated());
        }
        Err(Fault::record(format!("not Avro: a number of more than 64 bits at byte {}", self.at())))
    }

    #[inline]
    pub(super) fn int(&mut self) -> Result<i32> {
        let at = self.at();
        let number = self.long()?;
        i32::try_from(number)
            .map_err(|_| Fault::record(format!("not Avro: an int of more than 32 bits at byte {at}: {number}")))
    }

    pub(super) fn boolean(&mut self) -> Result<bool> {
        let at = self.at();
        match self.array::<1>()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(Fault::record(format!("not Avro: the boolean at byte {at} is {other}, not 0 or 1"))),
        }
    }

    #[inline]
    pub(super) fn float(&mut self) -> Result<f32> {
        Ok(f32::from_le_bytes(self.array()?))
    }

    #[inline]
    pub(super) fn double(&mut self) -> Result<f64> {
        Ok(f64::from_le_bytes(self.array()?))
    }

    /// Bytes, or a string, with their length before them.
    #[inline]
    pub(super) fn bytes(&mut self) -> Result<&'a [u8]> {
        let at = self.at();
        let length = self.long()?;
        let length = usize::try_from(length)
            .map_err(|_| Fault::record(format!("not Avro: the length at byte {at} is {length}")))?;
        self.take(length)
    }

    /// Which one of `count` symbols or branches.
    #[inline]
    pub(super) fn index(&mut self, what: &str, count: usize) -> Result<usize> {
        let at = self.at();
        let index = self.long()?;
        usize::try_from(index).ok().filter(|i| *i < count).ok_or_else(|| {
            Fault::record(format!("not Avro: the {what} at byte {at} is number {index}, and the schema has {count}"))
        })
    }

    /// How many items follow in the next block of an array or map, 0 behind the last; and the block's bytes, where they
    /// are told.
    pub(super) fn block(&mut self) -> Result<(u64, Option<usize>)> {
        let count = self.long()?;
        if count >= 0 {
            return Ok((count.unsigned_abs(), None));
        }
        let at = self.at();
        let size = self.long()?;
        let size = usize::try_from(size)
            .map_err(|_| Fault::record(format!("not Avro: the size of a block at byte {at} is {size}")))?;
        Ok((count.unsigned_abs(), Some(size)))
    }

    /// # Errors
    /// If there is more.
    pub(super) fn end(&self) -> Result<()> {
        match self.bytes.len() {
            0 => Ok(()),
            more => Err(Fault::record(format!("{more} bytes follow behind the Avro record of the schema"))),
        }
    }

    /// In the record's value, behind the five bytes of the frame.
    fn at(&self) -> usize {
        self.length - self.bytes.len() + super::FRAME_BYTES
    }

    #[cold]
    fn truncated(&self) -> Box<Fault> {
        Fault::record(format!("truncated: the Avro record goes on behind its {} bytes", self.length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_zigzag_and_no_longer_than_their_type() {
        let long = |bytes: &[u8]| Cursor::new(bytes).long().map_err(|fault| fault.message());
        for (bytes, number) in [
            (&[0_u8][..], 0),
            (&[1], -1),
            (&[2], 1),
            (&[0x7f], -64),
            (&[0x80, 0x01], 64),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], i64::MIN),
            (&[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], i64::MAX),
        ] {
            assert_eq!(long(bytes), Ok(number), "{bytes:?}");
        }
        assert_eq!(long(&[]), Err("truncated: the Avro record goes on behind its 0 bytes".to_owned()));
        assert_eq!(long(&[0x80]), Err("truncated: the Avro record goes on behind its 1 bytes".to_owned()));
        let wide = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        assert_eq!(long(&wide), Err("not Avro: a number of more than 64 bits at byte 5".to_owned()));
        assert_eq!(
            Cursor::new(&[0x80, 0x80, 0x80, 0x80, 0x10]).int().map_err(|fault| fault.message()),
            Err("not Avro: an int of more than 32 bits at byte 5: 2147483648".to_owned())
        );
    }
}
