//! Shards: the sets of a stream's partitions that one speed worker owns together.

use std::fmt;

use crate::offsets::{OffsetVector, PartitionId};

/// Shard `number` of `of`: the partitions whose number leaves `number` when divided by `of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shard {
    pub number: u32,
    pub of: u32,
}

impl Shard {
    /// Every partition.
    pub const WHOLE: Self = Self { number: 0, of: 1 };

    /// All shards of a stream that has `of` of them.
    pub fn all(of: u32) -> impl Iterator<Item = Self> {
        (0..of).map(move |number| Self { number, of })
    }

    pub fn holds(self, partition: PartitionId) -> bool {
        i64::from(partition.0).rem_euclid(i64::from(self.of.max(1))) == i64::from(self.number)
    }

    /// What `vector` says of this shard's partitions.
    #[must_use]
    pub fn restrict(self, vector: &OffsetVector) -> OffsetVector {
        vector.iter().filter(|(partition, _)| self.holds(*partition)).collect()
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.number, self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_partition_lies_in_exactly_one_shard() {
        for of in 1..5 {
            for partition in 0..20 {
                let holders = Shard::all(of).filter(|shard| shard.holds(PartitionId(partition))).count();
                assert_eq!(holders, 1, "partition {partition} of {of} shards");
            }
        }
        let restricted = Shard { number: 1, of: 2 }.restrict(&[(0, 5), (1, 6), (3, 7)].into());
        assert_eq!(restricted, [(1, 6), (3, 7)].into());
    }
}
