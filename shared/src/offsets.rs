//! Kafka offsets, ranges of them, and vectors of them: the line between batch and speed.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A Kafka partition number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct PartitionId(pub i32);

/// Also from a text: keys of JSON objects are texts, and within tagged enums serde hands them on as such.
impl<'de> Deserialize<'de> for PartitionId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(i32),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(number) => Ok(Self(number)),
            Form::Text(text) => text.parse().map(Self).map_err(serde::de::Error::custom),
        }
    }
}

/// A Kafka offset; as the end of something it is the *next* offset, as Kafka counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub i64);

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Offsets `[start, end)` of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OffsetRange {
    pub start: Offset,
    pub end: Offset,
}

impl OffsetRange {
    /// `start` may equal `end` (empty), never exceed it.
    pub fn new(start: Offset, end: Offset) -> Self {
        assert!(start <= end, "an offset range may not end before it starts: [{start}, {end})");
        Self { start, end }
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub fn contains(&self, offset: Offset) -> bool {
        self.start <= offset && offset < self.end
    }
}

impl fmt::Display for OffsetRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end)
    }
}

/// A vector {partition → next offset}.
///
/// A partition that is absent stands at its origin: every offset it ever had lies at or past the vector there.
/// Serialized as a JSON object, `{"0": 1200, "1": 7}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OffsetVector(BTreeMap<PartitionId, Offset>);

/// Up to where a generation has counted every event.
pub type Cut = OffsetVector;

/// The offsets that an answer includes.
pub type Position = OffsetVector;

impl OffsetVector {
    pub fn new() -> Self {
        Self::default()
    }

    /// The next offset of `partition`; `None` stands for its origin.
    pub fn get(&self, partition: PartitionId) -> Option<Offset> {
        self.0.get(&partition).copied()
    }

    pub fn set(&mut self, partition: PartitionId, next: Offset) {
        self.0.insert(partition, next);
    }

    /// Raises `partition` to `next`; a lower `next` changes nothing.
    pub fn advance(&mut self, partition: PartitionId, next: Offset) {
        let entry = self.0.entry(partition).or_insert(next);
        *entry = (*entry).max(next);
    }

    /// In partition order.
    pub fn iter(&self) -> impl Iterator<Item = (PartitionId, Offset)> + '_ {
        self.0.iter().map(|(p, o)| (*p, *o))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether `offset` of `partition` lies below this vector.
    pub fn is_past(&self, partition: PartitionId, offset: Offset) -> bool {
        self.get(partition).is_some_and(|next| offset < next)
    }

    /// Whether this vector has reached `other` in every partition that `other` names.
    pub fn covers(&self, other: &Self) -> bool {
        other.iter().all(|(p, o)| self.get(p).is_some_and(|mine| mine >= o))
    }

    /// The greater offset of each partition of either.
    pub fn join(&self, other: &Self) -> Self {
        let mut joined = self.clone();
        for (p, o) in other.iter() {
            joined.advance(p, o);
        }
        joined
    }

    /// The smaller offset of each partition that both name; one that either lacks stands at its origin, so it is absent.
    pub fn meet(&self, other: &Self) -> Self {
        Self(self.iter().filter_map(|(p, o)| other.get(p).map(|t| (p, o.min(t)))).collect())
    }
}

impl FromIterator<(PartitionId, Offset)> for OffsetVector {
    fn from_iter<I: IntoIterator<Item = (PartitionId, Offset)>>(iter: I) -> Self {
        Self(iter.into_iter().collect())
    }
}

impl<const N: usize> From<[(i32, i64); N]> for OffsetVector {
    fn from(pairs: [(i32, i64); N]) -> Self {
        pairs.into_iter().map(|(p, o)| (PartitionId(p), Offset(o))).collect()
    }
}

impl fmt::Display for OffsetVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (i, (p, o)) in self.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{p}: {o}")?;
        }
        f.write_str("}")
    }
}

/// On which side of a cut something lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// All of it is counted by a generation with that cut.
    Below,
    /// None of it is.
    AtOrPast,
    /// A part is: it can be used on neither side.
    Straddles,
}

/// The vector of offset ranges that a run covers: {partition → [start, end)}, empty ranges left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Coverage(BTreeMap<PartitionId, OffsetRange>);

impl Coverage {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn get(&self, partition: PartitionId) -> Option<OffsetRange> {
        self.0.get(&partition).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = (PartitionId, OffsetRange)> + '_ {
        self.0.iter().map(|(p, r)| (*p, *r))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds `range`; it must be empty or touch what is covered of `partition` at one end.
    ///
    /// # Errors
    /// The two ranges when they overlap or leave a hole: that would count an event twice, or not at all.
    pub fn add(&mut self, partition: PartitionId, range: OffsetRange) -> Result<(), (OffsetRange, OffsetRange)> {
        if range.is_empty() {
            return Ok(());
        }
        match self.0.get_mut(&partition) {
            None => {
                self.0.insert(partition, range);
            }
            Some(have) if have.end == range.start => have.end = range.end,
            Some(have) if have.start == range.end => have.start = range.start,
            Some(have) => return Err((*have, range)),
        }
        Ok(())
    }

    /// Where this lies with respect to `cut`. An empty coverage lies below.
    pub fn side(&self, cut: &Cut) -> Side {
        let mut below = false;
        let mut past = false;
        for (p, range) in self.iter() {
            let next = cut.get(p).unwrap_or(range.start);
            below |= range.start < next;
            past |= range.end > next;
        }
        match (below, past) {
            (true, true) => Side::Straddles,
            (false, true) => Side::AtOrPast,
            (_, false) => Side::Below,
        }
    }

    /// The next offset of each partition behind its range.
    pub fn end(&self) -> OffsetVector {
        self.iter().map(|(p, r)| (p, r.end)).collect()
    }
}

impl FromIterator<(PartitionId, OffsetRange)> for Coverage {
    /// Later ranges of the same partition replace earlier ones.
    fn from_iter<I: IntoIterator<Item = (PartitionId, OffsetRange)>>(iter: I) -> Self {
        Self(iter.into_iter().filter(|(_, r)| !r.is_empty()).collect())
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (i, (p, r)) in self.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{p}: {r}")?;
        }
        f.write_str("}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coverage_knows_its_side_of_a_cut() {
        let mut run = Coverage::new();
        run.add(PartitionId(0), OffsetRange::new(Offset(5), Offset(8))).unwrap();
        run.add(PartitionId(1), OffsetRange::new(Offset(0), Offset(3))).unwrap();
        assert_eq!(run.side(&[(0, 5)].into()), Side::AtOrPast);
        assert_eq!(run.side(&[(0, 8), (1, 3)].into()), Side::Below);
        assert_eq!(run.side(&[(0, 8)].into()), Side::Straddles);
        assert_eq!(run.side(&[(0, 6), (1, 3)].into()), Side::Straddles);
        assert_eq!(run.side(&OffsetVector::new()), Side::AtOrPast);
    }

    #[test]
    fn coverage_refuses_holes_and_overlaps() {
        let mut run = Coverage::new();
        let p = PartitionId(0);
        run.add(p, OffsetRange::new(Offset(5), Offset(8))).unwrap();
        run.add(p, OffsetRange::new(Offset(8), Offset(9))).unwrap();
        run.add(p, OffsetRange::new(Offset(4), Offset(5))).unwrap();
        assert!(run.add(p, OffsetRange::new(Offset(10), Offset(11))).is_err());
        assert!(run.add(p, OffsetRange::new(Offset(8), Offset(10))).is_err());
        assert_eq!(run.get(p), Some(OffsetRange::new(Offset(4), Offset(9))));
    }

    #[test]
    fn an_absent_partition_stands_at_its_origin() {
        let a: OffsetVector = [(0, 5)].into();
        let b: OffsetVector = [(0, 4), (1, 1)].into();
        assert!(!a.covers(&b));
        assert!(b.join(&a).covers(&a));
        assert_eq!(a.meet(&b), [(0, 4)].into());
        assert!(!a.is_past(PartitionId(1), Offset(0)));
    }
}
