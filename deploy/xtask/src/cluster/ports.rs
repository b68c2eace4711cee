//! Free ports that nobody else takes between our choice and the daemon's bind.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

/// Below the ports from which the kernel serves outgoing connections and `bind(0)`, so only another cluster can want
/// the same one.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port that is free now and that this process has not given out before.
pub(super) fn free() -> u16 {
    loop {
        let port = RANGE.start + (random() % u64::from(RANGE.end - RANGE.start)) as u16;
        let mut given = GIVEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.insert(port);
            return port;
        }
    }
}

/// A random number, from the seed that the standard library draws for each hasher.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(0)
}
