//! A delta store in memory: for streams whose replay is cheap, and for tests that lose and damage it.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::{Change, DeltaStore, StoreError};

/// Loses everything with the process.
#[derive(Debug, Default)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    current: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What a crash would leave.
    flushed: BTreeMap<Vec<u8>, Vec<u8>>,
    failing: bool,
}

impl MemoryStore {
    /// What a crash would leave of it now.
    pub fn crashed(&self) -> Self {
        let flushed = self.inner.lock().flushed.clone();
        Self { inner: Mutex::new(Inner { current: flushed.clone(), flushed, failing: false }) }
    }

    /// Lets each operation fail from now on, or succeed again.
    pub fn set_failing(&self, failing: bool) {
        self.inner.lock().failing = failing;
    }

    /// Changes what is there behind the caller's back; the map is that of keys and values.
    pub fn damage(&self, by: impl FnOnce(&mut BTreeMap<Vec<u8>, Vec<u8>>)) {
        let inner = &mut *self.inner.lock();
        by(&mut inner.current);
        inner.flushed.clone_from(&inner.current);
    }
}

impl DeltaStore for MemoryStore {
    fn scan(&self, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StoreError> {
        let inner = self.inner.lock();
        failing(&inner)?;
        inner.current.iter().for_each(|(k, v)| each(k, v));
        Ok(())
    }

    fn apply(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        let mut inner = self.inner.lock();
        failing(&inner)?;
        for (key, value) in changes {
            match value {
                Some(value) => inner.current.insert(key, value),
                None => inner.current.remove(&key),
            };
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreError> {
        let inner = &mut *self.inner.lock();
        failing(inner)?;
        inner.flushed.clone_from(&inner.current);
        Ok(())
    }
}

fn failing(inner: &Inner) -> Result<(), StoreError> {
    if inner.failing { Err(StoreError::Failed("the store was told to fail".into())) } else { Ok(()) }
}
