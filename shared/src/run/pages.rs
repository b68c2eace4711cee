//! Decoded pages of runs' files, kept for the next lookups. What a run holds never changes, so neither do they.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::RecordBatch;
use parking_lot::Mutex;

/// Pages of any number of runs, up to so many bytes together; those go first that have not been asked for since they
/// were last looked at (second chance).
///
/// A page belongs to one opened file ([`OpenPages`]) and goes with it: no page can be taken for another run's.
#[derive(Debug)]
pub struct PageCache {
    max_bytes: usize,
    files: AtomicU64,
    kept: Mutex<Kept>,
}

/// The file, as numbered when it was opened, and the page's number in it.
type Key = (u64, usize);

#[derive(Debug, Default)]
struct Kept {
    pages: HashMap<Key, Page>,
    /// Each key of `pages` once; the next one to go in front.
    order: VecDeque<Key>,
    bytes: usize,
}

#[derive(Debug)]
struct Page {
    rows: RecordBatch,
    bytes: usize,
    asked_for: bool,
}

impl PageCache {
    /// 0: keeps nothing.
    pub fn new(max_bytes: usize) -> Arc<Self> {
        Arc::new(Self { max_bytes, files: AtomicU64::new(0), kept: Mutex::default() })
    }

    /// What is kept, for metrics.
    pub fn bytes(&self) -> usize {
        self.kept.lock().bytes
    }
}

/// The pages of one opened file; those that are kept go when it is dropped.
#[derive(Debug)]
pub(super) struct OpenPages {
    cache: Arc<PageCache>,
    file: u64,
}

impl OpenPages {
    pub(super) fn new(cache: &Arc<PageCache>) -> Self {
        Self { cache: Arc::clone(cache), file: cache.files.fetch_add(1, Ordering::Relaxed) }
    }

    pub(super) fn get(&self, page: usize) -> Option<RecordBatch> {
        let mut kept = self.cache.kept.lock();
        let page = kept.pages.get_mut(&(self.file, page))?;
        page.asked_for = true;
        Some(page.rows.clone())
    }

    /// Keeps a page, unless it is larger than all that may be kept.
    ///
    /// `rows`: with buffers of their own, or more memory is held than is counted.
    pub(super) fn keep(&self, page: usize, rows: &RecordBatch) {
        let bytes = rows.get_array_memory_size();
        if bytes > self.cache.max_bytes {
            return;
        }
        let key = (self.file, page);
        let mut kept = self.cache.kept.lock();
        // Another lookup may have been faster.
        if kept.pages.contains_key(&key) {
            return;
        }
        while kept.bytes + bytes > self.cache.max_bytes {
            kept.let_one_go();
        }
        kept.bytes += bytes;
        kept.order.push_back(key);
        kept.pages.insert(key, Page { rows: rows.clone(), bytes, asked_for: false });
    }
}

impl Drop for OpenPages {
    fn drop(&mut self) {
        let mut kept = self.cache.kept.lock();
        kept.order.retain(|(file, _)| *file != self.file);
        let mut freed = 0;
        kept.pages.retain(|(file, _), page| {
            let stays = *file != self.file;
            freed += if stays { 0 } else { page.bytes };
            stays
        });
        kept.bytes -= freed;
    }
}

impl Kept {
    fn let_one_go(&mut self) {
        while let Some(key) = self.order.pop_front() {
            let page = self.pages.get_mut(&key).expect("each key of the order has its page");
            if std::mem::take(&mut page.asked_for) {
                self.order.push_back(key);
                continue;
            }
            self.bytes -= page.bytes;
            self.pages.remove(&key);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array};

    use super::*;

    fn page(first: i64) -> RecordBatch {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(first..first + 64));
        RecordBatch::try_from_iter([("n", numbers)]).unwrap()
    }

    #[test]
    fn pages_that_are_asked_for_stay_within_the_limit() {
        let each = page(0).get_array_memory_size();
        let cache = PageCache::new(3 * each);
        let file = OpenPages::new(&cache);
        (0..3).for_each(|n| file.keep(n, &page(n as i64)));
        assert_eq!(file.get(0), Some(page(0)));
        file.keep(3, &page(3));
        assert_eq!([0, 1, 2, 3].map(|n| file.get(n).is_some()), [true, false, true, true]);
        assert_eq!(cache.bytes(), 3 * each);
        // All have been asked for: the one that stands longest goes.
        file.keep(4, &page(4));
        assert_eq!((0..5).filter(|n| file.get(*n).is_some()).count(), 3);
        assert_eq!(file.get(4), Some(page(4)));
        assert_eq!(cache.bytes(), 3 * each);
    }

    #[test]
    fn a_files_pages_are_its_own_and_go_with_it() {
        let cache = PageCache::new(1 << 20);
        let (one, other) = (OpenPages::new(&cache), OpenPages::new(&cache));
        one.keep(0, &page(0));
        one.keep(0, &page(7));
        assert_eq!((one.get(0), other.get(0)), (Some(page(0)), None));
        other.keep(0, &page(1));
        drop(one);
        assert_eq!(other.get(0), Some(page(1)));
        assert_eq!(cache.bytes(), page(1).get_array_memory_size());
        drop(other);
        assert_eq!((cache.bytes(), cache.kept.lock().order.len()), (0, 0));
    }

    #[test]
    fn nothing_is_kept_where_there_is_no_room() {
        let cache = PageCache::new(0);
        let file = OpenPages::new(&cache);
        file.keep(0, &page(0));
        assert_eq!((file.get(0), cache.bytes()), (None, 0));
    }
}
